import CLinux
import Glibc

/// An eventfd: a counter that threads and the kernel add to, and that a thread waits for.
public struct EventDescriptor: ~Copyable, Sendable {
  private let file: FileDescriptor

  public init() throws(SystemError) {
    file = FileDescriptor(owning: try checked(nestling_eventfd(), "eventfd"))
  }

  public var rawValue: Int32 { file.rawValue }

  /// Adds one. A counter at its limit has been signalled already, so that refusal is no loss.
  public func signal() {
    var one: UInt64 = 1
    // SAFETY: eight bytes, as eventfd(2) wants.
    _ = unsafe withUnsafeBytes(of: &one) { unsafe Glibc.write(file.rawValue, $0.baseAddress, 8) }
  }

  /// Waits until signalled, and takes all signals so far.
  public func wait() {
    while !take() {
      var poll = pollfd(fd: file.rawValue, events: Int16(POLLIN), revents: 0)
      // SAFETY: one element, as the count says.
      _ = unsafe Glibc.poll(&poll, 1, -1)
    }
  }

  /// Takes the signals so far, if any.
  @discardableResult
  public func take() -> Bool {
    var count: UInt64 = 0
    // SAFETY: eight bytes, as eventfd(2) wants.
    return unsafe withUnsafeMutableBytes(of: &count) { unsafe Glibc.read(file.rawValue, $0.baseAddress, 8) } == 8
  }
}
