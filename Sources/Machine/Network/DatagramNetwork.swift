import Devices
import Glibc
import Hardware
import Linux
import Synchronization

/// `-netdev dgram`: frames over a datagram socket. The link is up until the netdev is removed, because a datagram
/// socket does not know whether it has a peer.
///
/// The device's workers move frames in non-blocking calls. While one finds no frame, the loop watches the socket. If
/// the peer's queue is full, the device tries again after a millisecond, because the kernel does not report when a Unix
/// peer has room; after `stallLimit` the packets are lost, as on a wire.
///
/// Lock order: `current` is a leaf, except for the `WatchedDescriptor`'s lock. The device is called without it.
final class DatagramNetwork: NetdevBackend {
  private final class Connection: Sendable {
    let socket: DatagramSocket
    let watch: WatchedDescriptor
    /// The time of the first of the consecutive attempts that found the queue full, in nanoseconds; 0 if the last one
    /// succeeded.
    let fullSince = Atomic<UInt64>(0)

    init(_ socket: DatagramSocket, _ watch: WatchedDescriptor) {
      self.socket = socket
      self.watch = watch
    }
  }

  private static let headerSize = NetworkHeader.size
  /// In nanoseconds.
  private static let retryTime: UInt64 = 1_000_000
  private static let stallLimit: UInt64 = 100_000_000

  let link = NetdevLink(isConnected: true)
  let capabilities = NetworkCapabilities()
  private let local: SocketAddress
  private let remote: SocketAddress
  private let host: NetdevHost
  private let timer: EventLoop.Timer
  private let current = Mutex<Connection?>(nil)

  init(at local: SocketAddress, to remote: SocketAddress, on host: NetdevHost) throws(SystemError) {
    self.local = local
    self.remote = remote
    self.host = host
    timer = EventLoop.Timer(on: host.loop)
    let socket = try DatagramSocket(at: DatagramSocket.Address(local), to: DatagramSocket.Address(remote))
    let watch = try WatchedDescriptor(socket.rawValue, on: host.loop, []) { [weak self] _ in self?.arrived() }
    current.withLock { $0 = Connection(socket, watch) }
  }

  private var connection: Connection? { current.withLock { $0 } }

  var status: NetdevStatus { connection == nil ? .closed : .datagrams(local: local, remote: remote) }

  func close() {
    let ended = current.withLock { current in
      defer { current = nil }
      return current
    }
    ended?.watch.end()
    timer.stop()
    link.setConnected(false)
  }

  /// Called on the loop's thread.
  private func arrived() {
    connection?.watch.remove(.readable)
    link.frontend?.packetsAvailable(pair: 0)
  }

  // MARK: Calls of the device

  func setOffloads(_ offloads: NetworkOffloads) {}
  func setActivePairs(_ count: Int) {}

  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult {
    guard let connection else { return .dropped }
    do {
      let isSent = try connection.socket.send(segments.count, of: host.memory) {
        ScatteredFile.Segment(address: segments[$0].address, count: segments[$0].count)
      }
      if isSent {
        connection.fullSince.store(0, ordering: .relaxed)
        return .sent
      }
      return wait(connection)
    } catch {
      // No peer, or a packet that is too long.
      return .dropped
    }
  }

  private func wait(_ connection: Connection) -> NetworkSendResult {
    let now = Clock.monotonic()
    let since = connection.fullSince.load(ordering: .relaxed)
    if since == 0 {
      connection.fullSince.store(now, ordering: .relaxed)
    } else if now - since > Self.stallLimit {
      return .dropped
    }
    timer.start(at: now + Self.retryTime) { [weak self] in self?.link.frontend?.roomAvailable(pair: 0) }
    return .full
  }

  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int {
    guard let connection else { return 0 }
    for offset in 0..<Self.headerSize { packet.storeBytes(of: 0, toByteOffset: offset, as: UInt8.self) }
    // An error of the socket affects one datagram; the next call may succeed.
    if let count = try? connection.socket.receive(into: &packet, at: Self.headerSize) {
      return Self.headerSize + count
    }
    connection.watch.add(.readable)
    return 0
  }
}

extension DatagramSocket.Address {
  fileprivate init(_ address: SocketAddress) {
    self =
      switch address {
      case .unix(let path): .unix(path: path)
      case .inet(let host, let port): .inet(host: host, port: port)
      }
  }
}

extension DgramNetdevOptions: NetdevOpening {
  func open(on host: NetdevHost) throws(NetdevOpenError) -> any NetdevBackend {
    guard let local = local.address, let remote = remote.address else {
      throw .system(SystemError("netdev", code: EINVAL))
    }
    return try mapError(try DatagramNetwork(at: local, to: remote, on: host), NetdevOpenError.system)
  }
}
