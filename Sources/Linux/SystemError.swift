import Glibc

/// A failed system call: its name, its operand and its errno.
public struct SystemError: Error, Hashable, Sendable {
  /// The cause of a failure that the errno alone does not explain.
  public enum Cause: Hashable, Sendable {
    /// The file is neither a regular file nor a block device.
    case notAnImage
    /// The file is a block device, which cannot grow.
    case blockDevice
    /// The file is a FIFO that no process reads.
    case noReader
    /// The file would exceed RLIMIT_FSIZE, in bytes.
    case fileSizeLimit(UInt64)
    /// The parent process ended before this call.
    case parentEnded
    /// The host has fewer interrupt vectors than requested.
    case vectors(available: Int, requested: Int)
    case notIPv4Address
    case notPCIDevice
  }

  public let call: String
  /// A path, or another operand that helps the reader; empty if there is none.
  public let operand: String
  public let code: Int32
  public let cause: Cause?

  public init(_ call: String, _ operand: String = "", code: Int32, cause: Cause? = nil) {
    self.call = call
    self.operand = operand
    self.code = code
    self.cause = cause
  }

  /// Whether the peer of a connection is gone.
  public var isDisconnection: Bool { code == EPIPE || code == ECONNRESET }

  /// The C library's text for the errno: "No such file or directory".
  public var errnoText: String {
    // SAFETY: libc owns the text, and returns one for unknown codes as well.
    unsafe String(cString: strerror(code))
  }
}

/// Converts the C module's result, a value or -errno.
public func checked(_ answer: Int32, _ call: String, _ operand: String = "") throws(SystemError) -> Int32 {
  if answer < 0 { throw SystemError(call, operand, code: -answer) }
  return answer
}
