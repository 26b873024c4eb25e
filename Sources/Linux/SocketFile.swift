import Glibc

/// A bound Unix socket's name in the file system, which is removed when this value is destroyed.
struct SocketFile: ~Copyable, Sendable {
  let path: String
  private let device: UInt64
  private let inode: UInt64

  /// Binds a socket to a path. Replaces a socket that a dead process left there, and refuses a live one.
  init(binding socket: borrowing FileDescriptor, to path: String) throws(SystemError) {
    let descriptor = socket.rawValue
    var address = try Self.address(path)
    var code = unsafe Self.with(&address) { unsafe Glibc.bind(descriptor, $0, $1) }
    if code < 0, errno == EADDRINUSE {
      guard Self.isStale(path, &address) else { throw SystemError("bind", path, code: EADDRINUSE) }
      unsafe unlink(path)
      code = unsafe Self.with(&address) { unsafe Glibc.bind(descriptor, $0, $1) }
    }
    if code < 0 { throw SystemError("bind", path, code: errno) }
    var status = stat()
    // SAFETY: the structure outlives the call.
    if unsafe stat(path, &status) < 0 { throw SystemError("stat", path, code: errno) }
    device = UInt64(status.st_dev)
    inode = UInt64(status.st_ino)
    self.path = path
  }

  deinit {
    // If another process has since put its own socket at the path, that socket must stay.
    var status = stat()
    // SAFETY: the structure outlives the call.
    if unsafe stat(path, &status) == 0, UInt64(status.st_dev) == device, UInt64(status.st_ino) == inode {
      unsafe unlink(path)
    }
  }

  static func address(_ path: String) throws(SystemError) -> sockaddr_un {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    let room = MemoryLayout.size(ofValue: address.sun_path)
    guard bytes.count < room, !bytes.contains(0) else { throw SystemError("bind", path, code: ENAMETOOLONG) }
    // SAFETY: the count is checked against the array, whose last byte stays zero.
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { target in
      for (index, byte) in bytes.enumerated() { unsafe target[index] = byte }
    }
    return address
  }

  static func with(
    _ address: inout sockaddr_un, _ call: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) -> Int32 {
    // SAFETY: sockaddr_un begins like sockaddr, and the call gets its size.
    unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { bound in
        unsafe call(bound, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }

  private static func isStale(_ path: String, _ address: inout sockaddr_un) -> Bool {
    var status = stat()
    // SAFETY: the structure outlives the call.
    guard unsafe lstat(path, &status) == 0, status.st_mode & S_IFMT == S_IFSOCK else { return false }
    // Probe with a datagram socket. A live stream socket refuses it as the wrong type (EPROTOTYPE), so that its server
    // gets no client. A socket that no process has open refuses the connection (net/unix/af_unix.c, unix_find_bsd).
    let probe = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard probe >= 0 else { return false }
    defer { close(probe) }
    let code = unsafe with(&address) { unsafe connect(probe, $0, $1) }
    return code < 0 && errno == ECONNREFUSED
  }
}
