import CLinux
import Glibc

/// A listening TCP socket, on an IPv4 address.
public struct TCPListener: ~Copyable, Sendable {
  private let file: FileDescriptor
  private let name: String

  public init(at host: String, port: UInt16) throws(SystemError) {
    let name = "\(host):\(port)"
    var address = try InternetAddress.make(host, port)
    let file = try InternetAddress.socket(name)
    var yes: Int32 = 1
    // SAFETY: SO_REUSEADDR takes an int.
    unsafe setsockopt(file.rawValue, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
    let code = unsafe InternetAddress.with(&address) { unsafe Glibc.bind(file.rawValue, $0, $1) }
    if code < 0 { throw SystemError("bind", name, code: errno) }
    if listen(file.rawValue, 1) < 0 { throw SystemError("listen", name, code: errno) }
    // If a client disconnects between poll and accept, accept must not wait for the next client.
    _ = fcntl(file.rawValue, F_SETFL, O_NONBLOCK)
    self.file = file
    self.name = name
  }

  public var rawValue: Int32 { file.rawValue }

  /// Accepts the next connection; throws EAGAIN if there is none.
  public func accept() throws(SystemError) -> FileDescriptor {
    FileDescriptor(owning: try checked(nestling_accept(file.rawValue), "accept", name))
  }
}

extension FileDescriptor {
  /// Connects to a port of an IPv4 address.
  /// - Parameter patience: the limit of the wait for the other host, within TCP's own time limit.
  public init(
    connectingTo host: String, port: UInt16, patience: Patience = Patience(until: nil)
  ) throws(SystemError) {
    let name = "\(host):\(port)"
    let file = try FileDescriptor(beginningToConnectTo: host, port: port)
    try patience.wait(untilWritable: file.rawValue, "connect", name)
    try file.checkConnection(to: name)
    _ = fcntl(file.rawValue, F_SETFL, 0)
    self = file
  }

  /// Begins to connect to a port of an IPv4 address, without waiting. The non-blocking socket becomes writable when the
  /// attempt ends; `checkConnection` then reports its result.
  public init(beginningToConnectTo host: String, port: UInt16) throws(SystemError) {
    let name = "\(host):\(port)"
    var address = try InternetAddress.make(host, port)
    let file = try InternetAddress.socket(name)
    _ = fcntl(file.rawValue, F_SETFL, O_NONBLOCK)
    if unsafe InternetAddress.with(&address, { unsafe connect(file.rawValue, $0, $1) }) < 0 {
      // An interrupted connect continues in the background (connect(2)).
      guard errno == EINPROGRESS || errno == EINTR else { throw SystemError("connect", name, code: errno) }
    }
    self = file
  }

  /// Throws the error of a connection attempt that has ended.
  public func checkConnection(to name: String) throws(SystemError) {
    var code: Int32 = 0
    var size = socklen_t(MemoryLayout<Int32>.size)
    // SAFETY: SO_ERROR returns an int.
    unsafe getsockopt(rawValue, SOL_SOCKET, SO_ERROR, &code, &size)
    if code != 0 { throw SystemError("connect", name, code: code) }
  }
}

/// Host names are not resolved: that would need the host's name service, which a static executable lacks.
enum InternetAddress {
  static func make(_ host: String, _ port: UInt16) throws(SystemError) -> sockaddr_in {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    // SAFETY: the structure has the size of an IPv4 address.
    let known = unsafe inet_pton(AF_INET, host == "localhost" ? "127.0.0.1" : host, &address.sin_addr)
    if known != 1 { throw SystemError("inet_pton", host, code: EINVAL, cause: .notIPv4Address) }
    return address
  }

  static func socket(_ name: String) throws(SystemError) -> FileDescriptor {
    let answer = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    if answer < 0 { throw SystemError("socket", name, code: errno) }
    return FileDescriptor(owning: answer)
  }

  static func with(
    _ address: inout sockaddr_in, _ call: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) -> Int32 {
    // SAFETY: sockaddr_in begins like sockaddr, and the call gets its size.
    unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { bound in
        unsafe call(bound, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
  }
}
