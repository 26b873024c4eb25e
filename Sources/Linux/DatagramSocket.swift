import Glibc

/// A Unix or UDP socket that exchanges packets, one in each datagram, with one peer. No call waits.
///
/// The socket is not connected, so a peer may come later and be replaced at the same address.
public final class DatagramSocket: Sendable {
  public enum Address: Hashable, Sendable {
    case unix(path: String)
    /// - Parameter host: an IPv4 address, or `localhost`.
    case inet(host: String, port: UInt16)
  }

  /// The address of a socket as system calls take it.
  private enum SocketAddress: Sendable {
    case unix(sockaddr_un)
    case inet(sockaddr_in)
  }

  /// The most datagrams that one call of `receive` skips.
  private static let skipLimit = 16

  private let file: FileDescriptor
  /// Removes the socket from the file system.
  private let socketFile: SocketFile?
  private let peer: SocketAddress
  private let peerName: String

  /// Binds a socket to `local`; packets go to `remote`. Both must be of the same family.
  public init(at local: Address, to remote: Address) throws(SystemError) {
    let type = Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue) | Int32(SOCK_NONBLOCK.rawValue)
    switch (local, remote) {
    case (.unix(let path), .unix(let remotePath)):
      peer = .unix(try SocketFile.address(remotePath))
      peerName = remotePath
      let answer = socket(AF_UNIX, type, 0)
      if answer < 0 { throw SystemError("socket", path, code: errno) }
      let file = FileDescriptor(owning: answer)
      socketFile = try SocketFile(binding: file, to: path)
      self.file = file
    case (.inet(let host, let port), .inet(let remoteHost, let remotePort)):
      peer = .inet(try InternetAddress.make(remoteHost, remotePort))
      peerName = "\(remoteHost):\(remotePort)"
      let name = "\(host):\(port)"
      var address = try InternetAddress.make(host, port)
      let answer = socket(AF_INET, type, 0)
      if answer < 0 { throw SystemError("socket", name, code: errno) }
      let file = FileDescriptor(owning: answer)
      let code = unsafe InternetAddress.with(&address) { unsafe Glibc.bind(file.rawValue, $0, $1) }
      if code < 0 { throw SystemError("bind", name, code: errno) }
      socketFile = nil
      self.file = file
    default: throw SystemError("bind", code: EAFNOSUPPORT)
    }
  }

  public var rawValue: Int32 { file.rawValue }

  /// Sends a packet from guest memory.
  /// - Parameters:
  ///   - count: the number of segments, at most `GuestMemory.packetSegmentLimit`.
  ///   - segment: returns a segment. It may come from the guest.
  /// - Returns: false if the socket or the peer's queue is full. `poll` does not report when a Unix peer has room.
  /// - Throws: ECONNREFUSED or ENOENT if there is no peer, EMSGSIZE if the packet is too long.
  public func send(
    _ count: Int, of memory: GuestMemory, segment: (Int) -> ScatteredFile.Segment
  ) throws(SystemError) -> Bool {
    let noHeader = unsafe UnsafeRawBufferPointer(start: nil, count: 0)
    return try unsafe memory.withPacket(noHeader, count, segment, "sendmsg") { list throws(SystemError) -> Bool in
      var message = unsafe msghdr()
      unsafe message.msg_iov = list.baseAddress
      unsafe message.msg_iovlen = list.count
      while true {
        let answer = unsafe send(&message)
        if answer >= 0 { return true }
        if errno == EAGAIN || errno == ENOBUFS { return false }
        if errno != EINTR { throw SystemError("sendmsg", peerName, code: errno) }
      }
    }
  }

  private func send(_ message: inout msghdr) -> Int {
    let descriptor = file.rawValue
    // SAFETY: the address outlives the call, which gets its size.
    switch peer {
    case .unix(var address):
      return unsafe withUnsafeMutableBytes(of: &address) { name in
        unsafe message.msg_name = name.baseAddress
        unsafe message.msg_namelen = socklen_t(name.count)
        return unsafe sendmsg(descriptor, &message, Int32(MSG_NOSIGNAL))
      }
    case .inet(var address):
      return unsafe withUnsafeMutableBytes(of: &address) { name in
        unsafe message.msg_name = name.baseAddress
        unsafe message.msg_namelen = socklen_t(name.count)
        return unsafe sendmsg(descriptor, &message, Int32(MSG_NOSIGNAL))
      }
    }
  }

  /// Takes the next packet. Skips datagrams that are empty or do not fit.
  /// - Parameter target: gets the packet from `offset` on.
  /// - Returns: the number of bytes; nil if no packet waits, or if many datagrams were skipped.
  public func receive(into target: inout MutableRawSpan, at offset: Int) throws(SystemError) -> Int? {
    let room = target.byteCount - offset
    guard offset >= 0, room > 0 else { return nil }
    for _ in 0..<Self.skipLimit {
      // SAFETY: the kernel writes at most the bytes from `offset` to the span's end.
      let count = unsafe target.withUnsafeMutableBytes { bytes in
        // With MSG_TRUNC the result is the datagram's length, even if it does not fit.
        let base = unsafe bytes.baseAddress?.advanced(by: offset)
        let count = unsafe recv(rawValue, base, room, Int32(MSG_TRUNC))
        return count < 0 ? -Int(errno) : count
      }
      if count > 0, count <= room { return count }
      if count == -Int(EAGAIN) { return nil }
      // A datagram that could not be delivered is reported by the next call.
      if count < 0, count != -Int(EINTR), count != -Int(ECONNREFUSED) {
        throw SystemError("recv", peerName, code: Int32(-count))
      }
    }
    return nil
  }
}
