import CLinux
import Glibc

/// A listening socket in the file system, which is removed when this value is destroyed.
public struct UnixListener: ~Copyable, Sendable {
  private let file: FileDescriptor
  public let path: String
  private let device: UInt64
  private let inode: UInt64

  /// Listens at a path. Replaces a socket that a dead process left there, and refuses a live one.
  public init(at path: String) throws(SystemError) {
    let answer = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    if answer < 0 { throw SystemError("socket", path, code: errno) }
    let file = FileDescriptor(owning: answer)
    var address = try Self.address(path)
    var code = unsafe Self.withSocketAddress(&address) { unsafe Glibc.bind(file.rawValue, $0, $1) }
    if code < 0, errno == EADDRINUSE {
      guard Self.isStale(path, &address) else { throw SystemError("bind", path, code: EADDRINUSE) }
      unsafe unlink(path)
      code = unsafe Self.withSocketAddress(&address) { unsafe Glibc.bind(file.rawValue, $0, $1) }
    }
    if code < 0 { throw SystemError("bind", path, code: errno) }
    if listen(file.rawValue, 1) < 0 { throw SystemError("listen", path, code: errno) }
    // If a client disconnects between poll and accept, accept must not wait for the next client.
    _ = fcntl(file.rawValue, F_SETFL, O_NONBLOCK)
    var status = stat()
    // SAFETY: the structure outlives the call.
    if unsafe stat(path, &status) < 0 { throw SystemError("stat", path, code: errno) }
    device = UInt64(status.st_dev)
    inode = UInt64(status.st_ino)
    self.file = file
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

  public var rawValue: Int32 { file.rawValue }

  /// Accepts the next connection; throws EAGAIN if there is none.
  public func accept() throws(SystemError) -> FileDescriptor {
    FileDescriptor(owning: try checked(nestling_accept(file.rawValue), "accept", path))
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

  static func withSocketAddress(
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
    let code = unsafe withSocketAddress(&address) { unsafe connect(probe, $0, $1) }
    return code < 0 && errno == ECONNREFUSED
  }
}

extension FileDescriptor {
  /// Connects to a socket in the file system.
  /// - Parameter patience: the limit of the wait for a server whose queue of clients is full.
  public init(connectingTo path: String, patience: Patience = Patience(until: nil)) throws(SystemError) {
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    let answer = socket(AF_UNIX, type, 0)
    if answer < 0 { throw SystemError("socket", path, code: errno) }
    let file = FileDescriptor(owning: answer)
    var address = try UnixListener.address(path)
    while unsafe UnixListener.withSocketAddress(&address, { unsafe connect(file.rawValue, $0, $1) }) < 0 {
      // EAGAIN: the queue is full, and poll does not report room (net/unix/af_unix.c, unix_stream_connect).
      guard errno == EAGAIN || errno == EINTR else { throw SystemError("connect", path, code: errno) }
      try patience.pause("connect", path)
    }
    _ = fcntl(file.rawValue, F_SETFL, 0)
    self = file
  }

  /// Connects to a socket in the file system, without waiting: EAGAIN is thrown if the server's queue of clients is
  /// full. The socket is non-blocking.
  public init(beginningToConnectTo path: String) throws(SystemError) {
    let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    let answer = socket(AF_UNIX, kind, 0)
    if answer < 0 { throw SystemError("socket", path, code: errno) }
    let file = FileDescriptor(owning: answer)
    var address = try UnixListener.address(path)
    while unsafe UnixListener.withSocketAddress(&address, { unsafe connect(file.rawValue, $0, $1) }) < 0 {
      if errno != EINTR { throw SystemError("connect", path, code: errno) }
    }
    self = file
  }
}
