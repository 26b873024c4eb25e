import TestSupport

/// For those that know the oracle alone, such as `Tests/bench`.
package typealias SeededGenerator = TestSupport.SeededGenerator
