import CLinux
import Glibc

/// An eventfd: a counter that threads and the kernel increment and that a thread waits for.
public struct EventDescriptor: ~Copyable, Sendable {
  private let file: FileDescriptor

  public init() throws(SystemError) {
    file = FileDescriptor(owning: try checked(nestling_eventfd(), "eventfd"))
  }

  public var rawValue: Int32 { file.rawValue }

  /// Adds one. If the counter is at its limit, write(2) fails, but the counter is nonzero already and the waiter wakes.
  public func signal() { Self.signal(file.rawValue) }

  /// Adds one to the counter of an eventfd that another object owns.
  public static func signal(_ descriptor: Int32) {
    var one: UInt64 = 1
    // SAFETY: eventfd(2) takes eight bytes.
    _ = unsafe withUnsafeBytes(of: &one) { unsafe Glibc.write(descriptor, $0.baseAddress, 8) }
  }

  /// Waits until the counter is nonzero, and resets it to zero.
  public func wait() {
    while !take() {
      var poll = pollfd(fd: file.rawValue, events: Int16(POLLIN), revents: 0)
      // SAFETY: the count is one, and so is the number of elements.
      _ = unsafe Glibc.poll(&poll, 1, -1)
    }
  }

  /// Resets the counter to zero.
  /// - Returns: whether the counter was nonzero.
  @discardableResult
  public func take() -> Bool {
    var count: UInt64 = 0
    // SAFETY: eventfd(2) returns eight bytes.
    return unsafe withUnsafeMutableBytes(of: &count) { unsafe Glibc.read(file.rawValue, $0.baseAddress, 8) } == 8
  }
}
