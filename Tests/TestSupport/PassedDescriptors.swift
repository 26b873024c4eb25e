import Glibc

/// Sends bytes and open descriptors with them (SCM_RIGHTS), which stay open here.
/// - Returns: how many bytes went; negative where none did.
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

/// A pipe whose write end is handed over: once the last copy of that is closed, the read end is at its end.
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

  /// To be sent.
  public var descriptor: Int32 { writeEnd }

  /// Gives up the copy here.
  public func letGo() {
    close(writeEnd)
    writeEnd = -1
  }

  /// Whether every copy is closed.
  public var isClosed: Bool {
    var entry = pollfd(fd: readEnd, events: Int16(POLLIN), revents: 0)
    return poll(&entry, 1, 0) == 1 && entry.revents & Int16(POLLHUP) != 0
  }
}
