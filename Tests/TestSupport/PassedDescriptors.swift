import Glibc

/// Sends bytes together with open descriptors (SCM_RIGHTS), which stay open here.
/// - Returns: how many bytes were sent; negative on an error.
@discardableResult
public func send(_ bytes: [UInt8], with descriptors: [Int32], over socket: Int32) -> Int {
  // struct cmsghdr: length, level and type of the message, then its data.
  let length = 16 + 4 * descriptors.count
  var control = [UInt8](repeating: 0, count: (length + 7) & ~7)
  control.withUnsafeMutableBytes { control in
    control.storeBytes(of: length, as: Int.self)
    control.storeBytes(of: SOL_SOCKET, toByteOffset: 8, as: Int32.self)
    control.storeBytes(of: 1, toByteOffset: 12, as: Int32.self)  // SCM_RIGHTS
    for (index, descriptor) in descriptors.enumerated() {
      control.storeBytes(of: descriptor, toByteOffset: 16 + 4 * index, as: Int32.self)
    }
  }
  var bytes = bytes
  return bytes.withUnsafeMutableBytes { data in
    control.withUnsafeMutableBytes { control in
      var part = iovec(iov_base: data.baseAddress, iov_len: data.count)
      return withUnsafeMutablePointer(to: &part) { part in
        var message = msghdr()
        message.msg_iov = part
        message.msg_iovlen = 1
        if !descriptors.isEmpty {
          message.msg_control = control.baseAddress
          message.msg_controllen = control.count
        }
        return sendmsg(socket, &message, Int32(MSG_NOSIGNAL))
      }
    }
  }
}

/// A pipe whose write end is passed on. Once its last copy is closed, the read end reports a hang-up.
public final class LeakProbe {
  private let readEnd: Int32
  private var writeEnd: Int32

  public init() {
    var ends: [Int32] = [-1, -1]
    pipe(&ends)
    for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    (readEnd, writeEnd) = (ends[0], ends[1])
  }

  deinit {
    close(readEnd)
    if writeEnd >= 0 { close(writeEnd) }
  }

  /// The write end, to be passed on.
  public var descriptor: Int32 { writeEnd }

  /// Closes the copy in this object.
  public func letGo() {
    close(writeEnd)
    writeEnd = -1
  }

  /// Whether every copy of the write end is closed.
  public var isClosed: Bool {
    var entry = pollfd(fd: readEnd, events: Int16(POLLIN), revents: 0)
    return poll(&entry, 1, 0) == 1 && entry.revents & Int16(POLLHUP) != 0
  }
}
