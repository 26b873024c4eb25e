/// Something that takes arbitrary bytes: run under libFuzzer by `Tests/fuzz`, and over the committed corpus by
/// the unit tests.
public struct FuzzTarget: Sendable {
  public let name: String
  private let body: @Sendable (inout FuzzInput) throws(Finding) -> Void

  init(_ name: String, _ body: @escaping @Sendable (inout FuzzInput) throws(Finding) -> Void) {
    self.name = name
    self.body = body
  }

  /// Runs one input. A trap is a finding, too.
  /// - Returns: what was wrong, or nil.
  public func run(_ bytes: [UInt8]) -> String? {
    var input = FuzzInput(bytes)
    do {
      try body(&input)
      return nil
    } catch {
      return "\(name): \(error.text)"
    }
  }

  public static let all: [FuzzTarget] =
    [.registers, .queue, .tables, .configuration, .options, .monitor] + ofTheMachine
}

/// An answer that must not be.
struct Finding: Error {
  let text: String

  static func unless(_ condition: Bool, _ text: @autoclosure () -> String) throws(Finding) {
    if !condition { throw Finding(text: text()) }
  }
}
