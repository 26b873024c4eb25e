/// A test that takes arbitrary bytes. `Tests/fuzz` runs it under libFuzzer, and the unit tests run it on the committed
/// corpus.
public struct FuzzTarget: Sendable {
  public let name: String
  private let body: @Sendable (inout FuzzInput) throws(Finding) -> Void

  init(_ name: String, _ body: @escaping @Sendable (inout FuzzInput) throws(Finding) -> Void) {
    self.name = name
    self.body = body
  }

  /// Runs one input. A trap is a finding as well.
  /// - Returns: the finding; nil if there is none.
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
    [.registers, .queue, .tables, .configuration, .net, .options, .monitor] + ofTheMachine
}

/// A wrong result.
struct Finding: Error {
  let text: String

  static func unless(_ condition: Bool, _ text: @autoclosure () -> String) throws(Finding) {
    if !condition { throw Finding(text: text()) }
  }
}
