import CLinux
import Glibc

/// A listening socket in the file system, which is removed when this value is destroyed.
public struct UnixListener: ~Copyable, Sendable {
  private let file: FileDescriptor
  private let name: SocketFile

  /// Listens at a path. Replaces a socket that a dead process left there, and refuses a live one.
  public init(at path: String) throws(SystemError) {
    let answer = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    if answer < 0 { throw SystemError("socket", path, code: errno) }
    let file = FileDescriptor(owning: answer)
    let name = try SocketFile(binding: file, to: path)
    if listen(file.rawValue, 1) < 0 { throw SystemError("listen", path, code: errno) }
    // If a client disconnects between poll and accept, accept must not wait for the next client.
    _ = fcntl(file.rawValue, F_SETFL, O_NONBLOCK)
    self.file = file
    self.name = name
  }

  public var path: String { name.path }
  public var rawValue: Int32 { file.rawValue }

  /// Accepts the next connection; throws EAGAIN if there is none.
  public func accept() throws(SystemError) -> FileDescriptor {
    FileDescriptor(owning: try checked(nestling_accept(file.rawValue), "accept", path))
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
    var address = try SocketFile.address(path)
    while unsafe SocketFile.with(&address, { unsafe connect(file.rawValue, $0, $1) }) < 0 {
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
    var address = try SocketFile.address(path)
    while unsafe SocketFile.with(&address, { unsafe connect(file.rawValue, $0, $1) }) < 0 {
      if errno != EINTR { throw SystemError("connect", path, code: errno) }
    }
    self = file
  }
}
