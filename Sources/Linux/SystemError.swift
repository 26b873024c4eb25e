import Glibc

/// A failed system call: its name, its operand and its errno.
public struct SystemError: Error, Hashable, Sendable, CustomStringConvertible {
  public let call: String
  /// A path, or another operand that helps the reader; empty if there is none.
  public let operand: String
  public let code: Int32
  /// A clearer reason than the errno's text; nil if the errno's text is clear.
  public let explanation: String?

  public init(_ call: String, _ operand: String = "", code: Int32, because explanation: String? = nil) {
    self.call = call
    self.operand = operand
    self.code = code
    self.explanation = explanation
  }

  /// The explanation, or the errno's text: "No such file or directory".
  public var reason: String {
    if let explanation { return explanation }
    // SAFETY: libc owns the text, and returns one for unknown codes as well.
    return unsafe String(cString: strerror(code))
  }

  public var description: String {
    operand.isEmpty ? "\(call): \(reason)" : "\(operand): \(reason)"
  }
}

/// Converts the C module's result, a value or -errno.
public func checked(_ answer: Int32, _ call: String, _ operand: String = "") throws(SystemError) -> Int32 {
  if answer < 0 { throw SystemError(call, operand, code: -answer) }
  return answer
}
