import TestSupport

/// For users that import only the oracle, such as `Tests/bench`.
package typealias SeededGenerator = TestSupport.SeededGenerator
