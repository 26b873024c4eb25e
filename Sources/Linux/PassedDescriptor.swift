import CLinux
import Glibc

/// An open file that another process has passed to this one (SCM_RIGHTS, unix(7)), or that has several owners in this
/// process. The file is closed when the last reference is released.
public final class PassedDescriptor: Hashable, Sendable {
  public let file: FileDescriptor
  private let onClose: @Sendable () -> Void

  /// - Parameter onClose: called after the last owner is gone, on the thread that released it.
  public init(_ file: consuming FileDescriptor, onClose: @escaping @Sendable () -> Void = {}) {
    self.file = file
    self.onClose = onClose
  }

  deinit { onClose() }

  public var rawValue: Int32 { file.rawValue }

  /// The access mode of open(2): O_RDONLY, O_WRONLY or O_RDWR.
  public var accessMode: Int32 {
    get throws(SystemError) {
      let flags = fcntl(rawValue, F_GETFL)
      if flags < 0 { throw SystemError("fcntl", "fd \(rawValue)", code: errno) }
      return flags & O_ACCMODE
    }
  }

  public static func == (a: PassedDescriptor, b: PassedDescriptor) -> Bool { a === b }
  public func hash(into hasher: inout Hasher) { hasher.combine(ObjectIdentifier(self)) }
}

extension FileDescriptor {
  /// The largest number of descriptors in one read. The kernel closes the message's other descriptors.
  public static let passedLimit = Int(NESTLING_PASSED_LIMIT)

  /// Reads at most `count` bytes from a socket and the descriptors that came with them. The bytes of one read come from
  /// at most one message with descriptors. Returns no bytes at the socket's end, and nil if a non-blocking socket has
  /// no bytes yet.
  public func receive(count: Int) throws(SystemError) -> (bytes: [UInt8], descriptors: [PassedDescriptor])? {
    var bytes = [UInt8](repeating: 0, count: count)
    var passed = [Int32](repeating: -1, count: Self.passedLimit)
    var passedCount: UInt32 = 0
    // SAFETY: the buffer is `count` bytes long, and the list has room for the limit.
    let answer = unsafe bytes.withUnsafeMutableBytes { buffer in
      unsafe nestling_receive(rawValue, buffer.baseAddress, buffer.count, &passed, &passedCount)
    }
    let descriptors = passed[..<Int(passedCount)].map { PassedDescriptor(FileDescriptor(owning: $0)) }
    if answer == -Int(EAGAIN) { return nil }
    if answer < 0 { throw SystemError("recvmsg", code: Int32(-answer)) }
    return (Array(bytes[..<answer]), descriptors)
  }
}

extension FileDescriptor {
  /// Sends bytes over a socket, with open descriptors that arrive with the first byte. Never waits.
  /// - Parameter descriptors: at most `passedLimit`; they stay open here.
  /// - Returns: the number of bytes sent; nil if the socket has no room now.
  public func send(_ bytes: ArraySlice<UInt8>, with descriptors: [Int32] = []) throws(SystemError) -> Int? {
    // SAFETY: the counts are those of the arrays.
    let answer = unsafe bytes.withUnsafeBytes { buffer in
      unsafe nestling_send(rawValue, buffer.baseAddress, buffer.count, descriptors, UInt32(descriptors.count))
    }
    if answer == -Int(EAGAIN) { return nil }
    if answer < 0 { throw SystemError("sendmsg", code: Int32(-answer)) }
    return answer
  }

  /// Ends both directions of a connection. Reads at both ends then return its end.
  public func shutDown() { _ = shutdown(rawValue, Int32(SHUT_RDWR)) }
}

/// The two ends of a connection: stream sockets of this process, of which one can be passed to another process.
public struct SocketPair: ~Copyable, Sendable {
  public let first: FileDescriptor
  public let second: FileDescriptor

  /// Makes two connected sockets, which block.
  public init() throws(SystemError) {
    var ends: [Int32] = [-1, -1]
    // SAFETY: the array has two elements.
    _ = try checked(unsafe nestling_socket_pair(&ends), "socketpair")
    first = FileDescriptor(owning: ends[0])
    second = FileDescriptor(owning: ends[1])
  }

  /// Gives up the pair for its ends.
  public consuming func ends() -> (PassedDescriptor, PassedDescriptor) {
    (PassedDescriptor(first), PassedDescriptor(second))
  }
}
