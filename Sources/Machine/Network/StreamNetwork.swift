import Devices
import Glibc
import Hardware
import Linux
import Synchronization

/// `-netdev stream`: frames over a stream socket. One peer at a time; the link is up while there is one.
///
/// The loop's thread makes and ends connections. The device's workers move frames in non-blocking calls: a peer that
/// does not read fills its socket, and then the device waits, and nothing else does. While a worker finds no frame or
/// no room, the loop watches the socket for it; a busy connection costs the loop nothing.
///
/// Lock order: `state` and `current` are leaves. The device and the listener of notices are called without them.
final class StreamNetwork: NetdevBackend {
  private final class Connection: Sendable {
    let stream: FrameStream
    /// Whether a call of the device has found that the connection is over.
    let isBroken = Atomic(false)
    let watch: WatchedDescriptor

    init(_ stream: FrameStream, _ watch: WatchedDescriptor) {
      self.stream = stream
      self.watch = watch
    }
  }

  /// A connection that is being made.
  private final class Attempt: Sendable {
    let file: FileDescriptor
    init(_ file: consuming FileDescriptor) { self.file = file }
  }

  private enum Listener: ~Copyable {
    case unix(UnixListener)
    case tcp(TCPListener)

    var rawValue: Int32 {
      switch self {
      case .unix(let listener): listener.rawValue
      case .tcp(let listener): listener.rawValue
      }
    }

    func accept() throws(SystemError) -> FileDescriptor {
      switch self {
      case .unix(let listener): try listener.accept()
      case .tcp(let listener): try listener.accept()
      }
    }
  }

  private final class Server: Sendable {
    let listener: Listener
    init(_ listener: consuming Listener) { self.listener = listener }
  }

  private struct State {
    var status: NetdevStatus
    /// A connected socket that is not in use yet.
    var connected: Attempt?
    var server: Server?
    /// Waits for clients of `server`, or for the end of an attempt.
    var registration: EventLoop.Registration?
    var isClosed = false
  }

  /// The time that a peer's last frames have to reach the device after the peer has closed, in nanoseconds.
  private static let lastFramesTime: UInt64 = 100_000_000
  /// The time from a client that could not be served to the next one, in nanoseconds.
  private static let acceptPause: UInt64 = 100_000_000
  private static let headerSize = NetworkHeader.size

  let link = NetdevLink(isConnected: false)
  let capabilities = NetworkCapabilities()
  private let id: Identifier
  private let address: SocketAddress
  private let reconnectTime: UInt64?
  private let host: NetdevHost
  private let timer: EventLoop.Timer
  /// Ends a broken connection on the loop's thread.
  private let repair: EventLoop.Job
  private let state: Mutex<State>
  private let current = Mutex<Connection?>(nil)

  /// - Parameter reconnectTime: the time from the loss of a connection to the next attempt, in nanoseconds; nil for no
  ///   further attempt.
  init(
    id: Identifier, at address: SocketAddress, listens: Bool, reconnectTime: UInt64?, on host: NetdevHost
  ) throws(SystemError) {
    self.id = id
    self.address = address
    self.reconnectTime = reconnectTime
    self.host = host
    timer = EventLoop.Timer(on: host.loop)
    repair = EventLoop.Job(on: host.loop)
    let server = listens ? try Self.listen(at: address) : nil
    state = Mutex(State(status: listens ? .listening : .connecting, server: server))
    prepareRepair()
    if let server {
      let registration = try host.loop.register(server.listener.rawValue, []) { [weak self] _ in self?.accept() }
      state.withLock { $0.registration = registration }
      registration.setInterest(.readable)
    } else {
      host.loop.perform { [weak self] in self?.attempt() }
    }
  }

  /// Creates a netdev for a connected socket, which it uses from `beginConnected` on. It makes no other connection.
  /// Monitors show the socket as QEMU does, as a Unix socket without a path.
  init(id: Identifier, connected socket: consuming FileDescriptor, on host: NetdevHost) {
    self.id = id
    self.host = host
    address = .unix(path: "")
    reconnectTime = nil
    timer = EventLoop.Timer(on: host.loop)
    repair = EventLoop.Job(on: host.loop)
    state = Mutex(State(status: .connecting, connected: Attempt(socket)))
    prepareRepair()
  }

  private func prepareRepair() {
    repair.onRun { [weak self] in
      guard let self, current.withLock({ $0?.isBroken.load(ordering: .acquiring) == true }) else { return }
      disconnect()
    }
  }

  private static func listen(at address: SocketAddress) throws(SystemError) -> Server {
    switch address {
    case .unix(let path): Server(.unix(try UnixListener(at: path)))
    case .inet(let host, let port): Server(.tcp(try TCPListener(at: host.isEmpty ? "0.0.0.0" : host, port: port)))
    }
  }

  var status: NetdevStatus { state.withLock { $0.status } }

  func close() {
    host.loop.perform { [self] in
      let (server, registration) = state.withLock { state -> (Server?, EventLoop.Registration?) in
        defer {
          state.isClosed = true
          state.status = .closed
          state.server = nil
          state.connected = nil
          state.registration = nil
        }
        return (state.server, state.registration)
      }
      timer.stop()
      registration?.cancel()
      disconnect()
      withExtendedLifetime(server) {}
    }
  }

  // MARK: The loop's thread

  /// Begins to use the connected socket. Called once.
  func beginConnected() {
    let socket = state.withLock { state in
      defer { state.connected = nil }
      return state.connected
    }
    guard let socket else { return }
    do {
      begin(try FileDescriptor(duplicating: socket.file.rawValue))
    } catch {
      attemptFailed(error)
    }
  }

  private func attempt() {
    if state.withLock({ $0.isClosed }) { return }
    do {
      let file =
        switch address {
        case .unix(let path): try FileDescriptor(beginningToConnectTo: path)
        case .inet(let host, let port): try FileDescriptor(beginningToConnectTo: host, port: port)
        }
      let attempt = Attempt(file)
      let registration = try host.loop.register(attempt.file.rawValue, []) { [weak self] _ in self?.finish(attempt) }
      state.withLock { state in
        state.status = .connecting
        state.registration = registration
      }
      registration.setInterest(.writable)
    } catch {
      attemptFailed(error)
    }
  }

  private func finish(_ attempt: Attempt) {
    state.withLock { state in
      defer { state.registration = nil }
      return state.registration
    }?.cancel()
    do {
      try attempt.file.checkConnection(to: name)
      begin(try FileDescriptor(duplicating: attempt.file.rawValue))
    } catch {
      attemptFailed(error)
    }
  }

  /// The address in errors.
  private var name: String {
    switch address {
    case .unix(let path): path
    case .inet(let host, let port): "\(host):\(port)"
    }
  }

  private func attemptFailed(_ error: SystemError) {
    state.withLock { if !$0.isClosed { $0.status = .failed(error) } }
    attemptLater()
  }

  private func attemptLater() {
    guard let reconnectTime else { return }
    timer.start(at: Clock.monotonic() + reconnectTime) { [weak self] in self?.attempt() }
  }

  private func accept() {
    let (server, registration) = state.withLock { ($0.server, $0.registration) }
    guard let server, let registration else { return }
    // The client may be gone. Without a free descriptor the listener stays readable, so the next try comes later.
    guard let file = try? server.listener.accept() else { return acceptLater(registration) }
    // Further clients wait in the listener's queue.
    registration.setInterest([])
    begin(file)
  }

  private func acceptLater(_ listening: EventLoop.Registration) {
    listening.setInterest([])
    timer.start(at: Clock.monotonic() + Self.acceptPause) { listening.setInterest(.readable) }
  }

  private func begin(_ file: consuming FileDescriptor) {
    let stream = FrameStream(file, longestFrame: NetworkHeader.frameLimit)
    do {
      let watch = try WatchedDescriptor(stream.rawValue, on: host.loop, [.readable, .peerClosed]) { [weak self] in
        self?.handle($0)
      }
      let connection = Connection(stream, watch)
      current.withLock { $0 = connection }
      state.withLock { $0.status = .connected(address) }
      host.notify(.streamConnected(id, address))
      link.setConnected(true)
      connection.watch.begin()
    } catch {
      // The connection is closed. A server takes the next client.
      if let listening = state.withLock({ $0.server == nil ? nil : $0.registration }) {
        acceptLater(listening)
      } else {
        attemptFailed(error)
      }
    }
  }

  private func handle(_ events: EventLoop.Events) {
    guard let connection = current.withLock({ $0 }) else { return }
    if !events.isDisjoint(with: [.peerClosed, .hungUp, .failed]) {
      // The device takes the frames that have arrived, if it has buffers.
      connection.watch.remove([.readable, .writable, .peerClosed])
      timer.start(at: Clock.monotonic() + Self.lastFramesTime) { [weak self] in self?.disconnect() }
      link.frontend?.packetsAvailable(pair: 0)
      return
    }
    if events.contains(.readable) {
      connection.watch.remove(.readable)
      link.frontend?.packetsAvailable(pair: 0)
    }
    if events.contains(.writable) {
      // Before `flush`: if a worker leaves a rest after `flush`, its `add` must not be undone.
      connection.watch.remove(.writable)
      do {
        guard try connection.stream.flush() else { return connection.watch.add(.writable) }
      } catch {
        return disconnect()
      }
      link.frontend?.roomAvailable(pair: 0)
    }
  }

  /// Ends the connection, if there is one, and prepares for the next.
  private func disconnect() {
    let connection = current.withLock { current in
      defer { current = nil }
      return current
    }
    guard let connection else { return }
    connection.watch.end()
    timer.stop()
    let listening = state.withLock { state -> EventLoop.Registration? in
      if !state.isClosed { state.status = state.server == nil ? .disconnected : .listening }
      return state.registration
    }
    host.notify(.streamDisconnected(id))
    link.setConnected(false)
    listening?.setInterest(.readable)
    if !state.withLock({ $0.isClosed || $0.server != nil }) { attemptLater() }
  }

  // MARK: Calls of the device

  func setOffloads(_ offloads: NetworkOffloads) {}
  func setActivePairs(_ count: Int) {}

  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult {
    guard let connection = current.withLock({ $0 }) else { return .dropped }
    let stream = connection.stream
    do {
      let isSent = try stream.send(segments.count, of: host.memory) {
        ScatteredFile.Segment(address: segments[$0].address, count: segments[$0].count)
      }
      if !isSent || stream.hasRest { connection.watch.add(.writable) }
      return isSent ? .sent : .full
    } catch {
      if error.code != EMSGSIZE, error.code != EFAULT { reportBroken(connection) }
      return .dropped
    }
  }

  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int {
    guard let connection = current.withLock({ $0 }) else { return 0 }
    for offset in 0..<Self.headerSize { packet.storeBytes(of: 0, toByteOffset: offset, as: UInt8.self) }
    do {
      if let count = try connection.stream.receive(into: &packet, at: Self.headerSize) {
        return Self.headerSize + count
      }
      connection.watch.add(.readable)
    } catch {
      reportBroken(connection)
    }
    return 0
  }

  private func reportBroken(_ connection: Connection) {
    connection.isBroken.store(true, ordering: .releasing)
    repair.schedule()
  }
}

extension StreamNetdevOptions: NetdevOpening {
  func open(on host: NetdevHost) throws(NetdevOpenError) -> any NetdevBackend {
    guard let id, let address = address.address else { throw .system(SystemError("netdev", code: EINVAL)) }
    do {
      return try StreamNetwork(id: id, at: address, listens: server, reconnectTime: reconnectTime, on: host)
    } catch {
      throw .system(error)
    }
  }
}
