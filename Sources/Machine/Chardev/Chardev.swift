import Glibc
import Linux
import Synchronization
import VhostUser

/// A character device: carries bytes between its frontends (a serial port, a monitor, the qtest server) and its peer on
/// the host (a terminal, a file or a program).
///
/// The machine's loop reads, calls the frontends, and writes. Where one of these may block, the device has a loop of
/// its own for the input, for the output, or for each. Standard input and output may block: their open files are shared
/// with other processes, so they cannot be made non-blocking.
///
/// Lock order: the lock of `ChardevInput`, which is held during the frontends' calls except `outputRoom` of the
/// output's loop; then the frontends' locks; then the other locks of the device, with which no frontend is called.
public final class Chardev: Sendable {
  public let options: any ChardevOptions
  private let inputType: ChardevEndpoint.Input
  private let loop: EventLoop
  private let output: ChardevOutputBuffer?
  private let interpreter: (any InputInterpreter)?
  private let onExit: @Sendable () -> Void
  private let state: Mutex<State>

  private struct State {
    var frontends: [any ChardevFrontend] = []
    var target: ChardevOutputBuffer.Target?
    var listener: ChardevInput.Listener?
    var input: ChardevInput?
    /// Whether a device has the host's end, and whether it has a peer there.
    var isHandedOver = false
    var hasForeignPeer = false
  }

  /// Opens the device. A socket server waits for its first client if the options ask for that.
  /// - Parameters:
  ///   - loop: serves the device as far as that never blocks. Must not be stopped before the device.
  ///   - interpreter: finds commands in the input of `stdio` and of every multiplexed device.
  ///   - interruption: a descriptor that becomes readable when the wait for a client is cancelled.
  ///   - onExit: called when Ctrl-A X at this device ends Nestling. Must not block.
  public init(
    _ options: any ChardevOptions, on loop: EventLoop, interpreter: (any InputInterpreter)? = nil,
    interruption: Int32? = nil, onExit: @escaping @Sendable () -> Void = {}
  ) throws(SystemError) {
    self.options = options
    self.loop = loop
    self.onExit = onExit
    var endpoint = try ChardevEndpoint(options, interruption: interruption)
    inputType = endpoint.input
    let target = endpoint.target
    var listener: ChardevInput.Listener?
    if let opened = endpoint.listener.take() { listener = ChardevInput.Listener(opened) }
    state = Mutex(State(target: target, listener: listener))
    output = options is NullChardevOptions ? nil : try ChardevOutputBuffer(to: target, on: loop)
    if case .standardInput = endpoint.input {
      self.interpreter = interpreter
    } else {
      self.interpreter = options.multiplexed ? interpreter : nil
    }
  }

  /// Attaches a frontend. Must be called before `start`. The first frontend of a multiplexed device gets the focus.
  public func attach(_ frontend: any ChardevFrontend) throws(StartError) {
    let attached = state.withLock { state in
      guard !state.isHandedOver, state.frontends.isEmpty || options.multiplexed else { return false }
      state.frontends.append(frontend)
      return true
    }
    if !attached { throw .chardev(options.id.map(ChardevProblem.inUse) ?? .missingID) }
  }

  /// Whether a frontend is attached, or a device has the host's end.
  public var hasFrontend: Bool { state.withLock { !$0.frontends.isEmpty || $0.isHandedOver } }

  /// The name of the host's end, as in QEMU: with the prefix `disconnected:` for a socket without a client.
  var endpointName: String {
    guard case .connection = inputType, state.withLock({ $0.target == nil && !$0.hasForeignPeer }) else {
      return options.endpointName
    }
    return "disconnected:" + options.endpointName
  }

  /// Whether the device's input is a terminal. The terminal is in raw mode, so it does not echo the keys.
  public var isTerminal: Bool {
    if case .standardInput = inputType { Terminal.isTerminal } else { false }
  }

  /// Starts to pass bytes. For a device without input it calls the frontends' `connected` itself.
  public func start() throws(SystemError) {
    let (frontends, target, listener) = state.withLock { ($0.frontends, $0.target, $0.listener) }
    if frontends.isEmpty { return }
    output?.onRoom { for frontend in frontends { frontend.outputRoom() } }
    let source: ChardevInput.Source
    switch inputType {
    case .none:
      for frontend in frontends { frontend.connected() }
      return
    case .standardInput:
      source = .standardInput(ChardevOutputBuffer.Target(try FileDescriptor(duplicating: STDIN_FILENO)))
      Terminal.makeRaw()
    case .connection: source = .connections(first: target, listener)
    }
    let input = try ChardevInput(
      source, of: self, on: loop, ChardevFeed(frontends: frontends, interpreter: interpreter),
      mayBlock: frontends.contains { $0.mayBlock })
    state.withLock { $0.input = input }
    input.start()
  }

  /// Ends the input, writes the remaining output, and restores the terminal. A frontend must not call it, nor a caller
  /// that holds a lock that a frontend takes.
  public func stop() {
    // The end of the output releases a frontend that waits for room, so it comes first.
    output?.stop()
    let input = state.withLock { state in
      defer { state.input = nil }
      return state.input
    }
    input?.stop()
    // Removes the socket from the file system, and the reference cycle with frontends that hold this device.
    state.withLock { state in
      state.listener = nil
      state.frontends = []
      state.target = nil
    }
    if case .standardInput = inputType { Terminal.restore() }
  }

  // MARK: The host's end in the hands of a device

  /// The reason why a device does not get the host's end.
  enum HandOverError: Error {
    case chardev(ChardevProblem)
    case system(SystemError)
  }

  /// Gives the host's end to a device that passes descriptors over it, until `takeBack`.
  /// - Returns: the source of its connections, and the loop that serves them.
  func handOver() throws(HandOverError) -> (dialer: any BackEndDialer, loop: EventLoop) {
    let id = options.id
    guard let socket = options as? SocketChardevOptions, let path = socket.path else {
      throw .chardev(id.map(ChardevProblem.notUnixSocket) ?? .missingID)
    }
    let (isFree, target, listener) = state.withLock {
      state -> (Bool, ChardevOutputBuffer.Target?, ChardevInput.Listener?) in
      guard state.frontends.isEmpty, !state.isHandedOver else { return (false, nil, nil) }
      state.isHandedOver = true
      return (true, state.target.take(), state.listener)
    }
    guard isFree else { throw .chardev(id.map(ChardevProblem.inUse) ?? .missingID) }
    var first: PassedDescriptor?
    do {
      if let target { first = PassedDescriptor(try FileDescriptor(duplicating: target.file.rawValue)) }
      try output?.setTarget(nil)
    } catch {
      takeBack()
      throw .system(error)
    }
    if let listener { return (ListenerDialer(listener, first: first, on: loop), loop) }
    let interval = socket.reconnect > 0 ? UInt64(socket.reconnect) * 1_000_000_000 : nil
    return (ClientDialer(path: path, first: first, interval: interval, on: loop), loop)
  }

  /// Reports whether the device has a peer.
  func setForeignPeer(_ isConnected: Bool) { state.withLock { $0.hasForeignPeer = isConnected } }

  func takeBack() {
    state.withLock { state in
      state.isHandedOver = false
      state.hasForeignPeer = false
    }
  }

  // MARK: Calls of the frontends, from any thread

  /// Sends one byte without waiting. Without a peer it drops the byte.
  /// - Returns: false if the buffer is full because the peer does not read. `outputRoom` follows.
  public func write(_ byte: UInt8) -> Bool { output?.write(byte) ?? true }

  /// Sends all bytes or none, without waiting.
  /// - Returns: false if the buffer is full because the peer does not read. `outputRoom` follows.
  @discardableResult
  public func write(_ bytes: [UInt8]) -> Bool { output?.write(bytes) ?? true }

  /// Sends an answer without waiting, however full the buffer is. The sender checks `isBehind` before its next answer.
  /// - Returns: the position of the answer's end, for `isBehind`.
  public func send(_ answer: [UInt8]) -> UInt64 { output?.send(answer) ?? 0 }

  /// Returns whether the peer is slow to read the output up to `end`. If so, `outputRoom` follows.
  public func isBehind(_ end: UInt64) -> Bool { output?.isBehind(end) ?? false }

  /// Sends all bytes. Waits while the buffer is full.
  /// - Returns: false if the peer disconnects before it has read all bytes, or if Nestling ends.
  public func writeWaiting(_ bytes: [UInt8]) -> Bool { output?.writeWaiting(bytes) ?? true }

  /// Continues the delivery of input. A frontend calls it when it takes bytes again.
  public func roomChanged() { state.withLock { $0.input }?.roomChanged() }

  // MARK: Calls of the input, on its loop's thread

  /// Sets the peer; nil if it has left.
  func setTarget(_ target: ChardevOutputBuffer.Target?) throws(SystemError) {
    try output?.setTarget(target)
    state.withLock { $0.target = target }
  }

  /// Carries out Ctrl-A X.
  func exit() { onExit() }
}
