import Linux
import Synchronization

/// Reads a character device's input and passes it to the frontends. Everything happens on one loop's thread, the
/// device's input thread: the machine's loop, or a loop of its own if a read or a frontend may block.
///
/// A socket server serves one connection after the other; meanwhile the kernel keeps the next clients waiting.
final class ChardevInput: Sendable {
  /// A listening socket. Releasing it removes the socket from the file system.
  final class Listener: Sendable {
    let socket: ChardevEndpoint.Listener
    init(_ socket: consuming ChardevEndpoint.Listener) { self.socket = socket }
  }

  enum Source {
    case standardInput(ChardevOutputBuffer.Target)
    /// A connection that exists already, if there is one, and those that the listener accepts.
    case connections(first: ChardevOutputBuffer.Target?, Listener?)
  }

  /// An open file that is read.
  private final class Peer: Sendable {
    let target: ChardevOutputBuffer.Target
    let registration: EventLoop.Registration

    init(
      _ target: ChardevOutputBuffer.Target, on loop: EventLoop, _ onInput: @escaping @Sendable () -> Void
    ) throws(SystemError) {
      self.target = target
      registration = try loop.register(target.file.rawValue, []) { _ in onInput() }
    }

    // Before the descriptor is closed.
    deinit { registration.cancel() }
  }

  private struct State {
    var feed: ChardevFeed
    var peer: Peer?
    /// Whether the frontends are connected to the peer.
    var isConnected = false
    var listener: Listener?
    var listening: EventLoop.Registration?
    var isStopped = false
  }

  private enum Reading {
    case bytes([UInt8], [PassedDescriptor])
    case nothingYet
    case end
  }

  /// The pause after a failed accept, in nanoseconds.
  private static let acceptPause: UInt64 = 100_000_000

  private let device: Chardev
  private let loop: EventLoop
  /// The loop, if it serves nothing else.
  private let ownLoop: EventLoop?
  private let hasSockets: Bool
  /// Connects the first peer, and delivers input that a frontend did not take before.
  private let job: EventLoop.Job
  private let acceptTimer: EventLoop.Timer
  /// Only the loop's thread uses it after `start`, so the frontends may be called while it is held. A frontend must not
  /// stop its device.
  private let state: Mutex<State>

  /// - Parameters:
  ///   - shared: serves the input if nothing blocks.
  ///   - mayBlock: whether a frontend may block.
  init(
    _ source: Source, of device: Chardev, on shared: EventLoop, _ feed: ChardevFeed, mayBlock: Bool
  ) throws(SystemError) {
    self.device = device
    state = Mutex(State(feed: feed))
    let first: ChardevOutputBuffer.Target?
    let listener: Listener?
    switch source {
    case .standardInput(let target):
      first = target
      listener = nil
      hasSockets = false
    case .connections(let target, let opened):
      first = target
      listener = opened
      hasSockets = true
    }
    ownLoop = mayBlock || !hasSockets ? try EventLoop(name: "chardev input") : nil
    loop = ownLoop ?? shared
    job = EventLoop.Job(on: loop)
    acceptTimer = EventLoop.Timer(on: loop)
    job.onRun { [weak self] in self?.run() }
    let peer = try first.map { (target) throws(SystemError) in try makePeer(target) }
    let listening = try listener.map { (listener) throws(SystemError) in
      try loop.register(listener.socket.rawValue, []) { [weak self] _ in self?.accept() }
    }
    state.withLock { state in
      state.peer = peer
      state.listener = listener
      state.listening = listening
    }
  }

  private func makePeer(_ target: ChardevOutputBuffer.Target) throws(SystemError) -> Peer {
    try Peer(target, on: loop) { [weak self] in self?.read() }
  }

  /// Begins to read. The frontends' calls come on the loop's thread.
  func start() { job.schedule() }

  /// Delivers input that a frontend did not take before. May be called on any thread, with any lock held.
  func roomChanged() { job.schedule() }

  /// Ends the calls of the frontends, unless one of them blocks.
  func stop() {
    // The thread may wait in read(2) for input that another program on the same terminal took.
    if let ownLoop, !ownLoop.stop(patience: 500) { return }
    loop.perform { [self] in
      let (peer, listener, listening) = state.withLock { state in
        defer {
          state.isStopped = true
          state.peer = nil
          state.listener = nil
          state.listening = nil
        }
        return (state.peer, state.listener, state.listening)
      }
      acceptTimer.stop()
      // Before the files are closed.
      peer?.registration.cancel()
      listening?.cancel()
      withExtendedLifetime(listener) {}
    }
  }

  // MARK: The loop's thread

  private func run() {
    state.withLock { state in
      if state.isStopped { return }
      if state.peer != nil, !state.isConnected {
        state.isConnected = true
        state.feed.connected()
      }
      proceed(&state)
    }
  }

  /// Delivers input, and waits for the next.
  private func proceed(_ state: inout State) {
    state.feed.deliver()
    // Reads ahead even if the guest takes nothing: the input may be Ctrl-A X.
    state.peer?.registration.setInterest(state.feed.wantsMore ? .readable : [])
    if state.peer == nil { state.listening?.setInterest(.readable) }
  }

  private func read() {
    state.withLock { state in
      guard let peer = state.peer, state.feed.wantsMore else { return }
      switch read(from: peer.target.file) {
      case .nothingYet: return
      case .end: disconnect(&state)
      case .bytes(let bytes, let files):
        state.feed.take(files)
        for action in state.feed.take(bytes) {
          switch action {
          case .exit: device.exit()
          case .show(let text): device.write(Array(text.utf8))
          case .switchFocus: break
          }
        }
      }
      proceed(&state)
    }
  }

  private func read(from file: borrowing FileDescriptor) -> Reading {
    do {
      if hasSockets {
        guard let (bytes, files) = try file.receive(count: ChardevFeed.piece) else { return .nothingYet }
        return bytes.isEmpty ? .end : .bytes(bytes, files)
      }
      guard let bytes = try file.read(count: ChardevFeed.piece) else { return .nothingYet }
      return bytes.isEmpty ? .end : .bytes(bytes, [])
    } catch {
      return .end
    }
  }

  /// Ends the input of the present peer. Input that the frontends did not take yet stays.
  private func disconnect(_ state: inout State) {
    state.peer?.registration.cancel()
    state.peer = nil
    guard hasSockets else { return }
    // Without a target this throws nothing.
    try? device.setTarget(nil)
    // Monitors no longer wait for this client, so they carry out the rest of its commands before the next client.
    state.feed.deliver()
    state.feed.disconnected()
    state.isConnected = false
  }

  private func accept() {
    state.withLock { state in
      guard let listener = state.listener, state.peer == nil else { return }
      state.listening?.setInterest([])
      do {
        let target = try listener.socket.accept()
        let peer = try makePeer(target)
        try device.setTarget(target)
        state.peer = peer
        state.isConnected = true
        state.feed.connected()
        proceed(&state)
      } catch {
        // The client is gone; or the host has too few free descriptors: then the client has been closed here, or the
        // next wait would report it again.
        acceptTimer.start(at: Clock.monotonic() + Self.acceptPause) { [weak self] in self?.run() }
      }
    }
  }
}
