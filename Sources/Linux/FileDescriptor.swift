import CLinux
import Glibc

/// An open file descriptor, closed when this value is destroyed.
public struct FileDescriptor: ~Copyable, Sendable {
  public let rawValue: Int32

  /// Takes ownership of an open descriptor.
  public init(owning rawValue: Int32) { self.rawValue = rawValue }

  /// Opens a file (open(2) with O_CLOEXEC).
  public init(opening path: String, _ flags: Int32, mode: UInt32 = 0) throws(SystemError) {
    // SAFETY: the path lives for the duration of the call.
    let answer = unsafe path.withCString { unsafe nestling_open($0, flags, mode) }
    rawValue = try checked(answer, "open", path)
  }

  /// Duplicates an open descriptor that the caller does not own, such as standard input.
  public init(duplicating descriptor: Int32) throws(SystemError) {
    let answer = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
    if answer < 0 { throw SystemError("dup", code: errno) }
    rawValue = answer
  }

  deinit { close(rawValue) }

  /// Writes at most 4 KiB from `offset` on, with one write(2). On a blocking file, call `Poll.writable` first: then the
  /// write does not block, because a writable pipe has room for PIPE_BUF bytes.
  /// - Returns: the number of bytes written.
  public func writeSome(_ bytes: [UInt8], from offset: Int) throws(SystemError) -> Int {
    let count = min(bytes.count - offset, 4096)
    guard offset >= 0, count > 0 else { return 0 }
    // SAFETY: the range lies within the array.
    let written = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(rawValue, $0.baseAddress! + offset, count) }
    if written >= 0 { return written }
    if errno == EINTR || errno == EAGAIN { return 0 }
    throw SystemError("write", code: errno)
  }

  /// Writes all bytes and waits for room: in write(2), or in poll(2) if the file is non-blocking. Another process that
  /// shares the open file may have made standard output non-blocking.
  public func write(_ bytes: [UInt8]) throws(SystemError) {
    var offset = 0
    while offset < bytes.count {
      // SAFETY: the count is the rest of the array.
      let written = unsafe bytes.withUnsafeBytes { buffer in
        unsafe Glibc.write(rawValue, buffer.baseAddress! + offset, buffer.count - offset)
      }
      if written >= 0 {
        offset += written
      } else if errno == EAGAIN {
        _ = Poll.writable(rawValue, milliseconds: -1)
      } else if errno != EINTR {
        throw SystemError("write", code: errno)
      }
    }
  }

  /// Reads at most `count` bytes.
  /// - Returns: The bytes; empty at the end of the file, nil if a non-blocking file has no bytes yet.
  public func read(count: Int) throws(SystemError) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    while true {
      // SAFETY: the buffer is the array's and `count` bytes long.
      let answer = unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe Glibc.read(rawValue, buffer.baseAddress, buffer.count)
      }
      if answer >= 0 { return Array(bytes[..<answer]) }
      if errno == EAGAIN { return nil }
      if errno != EINTR { throw SystemError("read", code: errno) }
    }
  }
}
