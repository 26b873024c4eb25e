import Glibc

/// A system call that failed: which, on what, with which errno.
public struct SystemError: Error, Hashable, Sendable, CustomStringConvertible {
  public let call: String
  /// A path, or another operand worth telling; empty if none is.
  public let operand: String
  public let code: Int32
  /// The reason in words of our own, where the errno's text is not clear; nil otherwise.
  public let explanation: String?

  public init(_ call: String, _ operand: String = "", code: Int32, because explanation: String? = nil) {
    self.call = call
    self.operand = operand
    self.code = code
    self.explanation = explanation
  }

  /// The explanation, or the errno's own text: "No such file or directory".
  public var reason: String {
    if let explanation { return explanation }
    // SAFETY: the text is libc's own and stays; a code that libc does not know gets one too.
    return unsafe String(cString: strerror(code))
  }

  public var description: String {
    operand.isEmpty ? "\(call): \(reason)" : "\(operand): \(reason)"
  }
}

/// Turns the C module's answer, a value or -errno, into a result.
public func checked(_ answer: Int32, _ call: String, _ operand: String = "") throws(SystemError) -> Int32 {
  if answer < 0 { throw SystemError(call, operand, code: -answer) }
  return answer
}
