import Glibc
import Linux
import Synchronization

/// A character device: carries bytes between its frontends (a serial port, a monitor, the qtest server) and its peer on
/// the host (a terminal, a file or a program).
///
/// Two threads serve the device between `start` and `stop`: one reads and calls the frontends, the other writes. Lock
/// order: the device's locks are leaves; no frontend is called while one of them is held.
public final class Chardev: Sendable {
  public let options: any ChardevOptions
  private let input: ChardevEndpoint.Input
  private let output: ChardevOutputBuffer?
  private let interpreter: (any InputInterpreter)?
  private let onExit: @Sendable () -> Void
  private let stopEvent: EventDescriptor
  private let roomEvent: EventDescriptor
  private let stopping = Atomic<Bool>(false)
  private let state: Mutex<State>

  private struct State {
    var frontends: [any ChardevFrontend] = []
    var target: ChardevOutputBuffer.Target?
    var reader: Thread?
    var listener: Listener?
  }

  private final class Listener: Sendable {
    let listener: ChardevEndpoint.Listener
    init(_ listener: consuming ChardevEndpoint.Listener) { self.listener = listener }
  }

  /// Opens the device. A socket server waits for its first client if the options ask for that.
  /// - Parameters:
  ///   - interpreter: finds commands in the input of `stdio` and of every multiplexed device.
  ///   - interruption: a descriptor that becomes readable when the wait for a client is cancelled.
  ///   - onExit: called when Ctrl-A X at this device ends Nestling.
  public init(
    _ options: any ChardevOptions, interpreter: (any InputInterpreter)? = nil, interruption: Int32? = nil,
    onExit: @escaping @Sendable () -> Void = {}
  ) throws(SystemError) {
    self.options = options
    self.onExit = onExit
    stopEvent = try EventDescriptor()
    roomEvent = try EventDescriptor()
    var endpoint = try ChardevEndpoint(options, interruption: interruption)
    input = endpoint.input
    let target = endpoint.target
    var listener: Listener?
    if let opened = endpoint.listener.take() { listener = Listener(opened) }
    state = Mutex(State(target: target, listener: listener))
    output = options is NullChardevOptions ? nil : try ChardevOutputBuffer(to: target)
    if case .standardInput = endpoint.input {
      self.interpreter = interpreter
    } else {
      self.interpreter = options.multiplexed ? interpreter : nil
    }
  }

  /// Attaches a frontend. Must be called before `start`. The first frontend of a multiplexed device gets the focus.
  public func attach(_ frontend: any ChardevFrontend) throws(StartError) {
    let attached = state.withLock { state in
      guard state.frontends.isEmpty || options.multiplexed else { return false }
      state.frontends.append(frontend)
      return true
    }
    if !attached { throw .chardev(options.id.map(ChardevProblem.inUse) ?? .missingID) }
  }

  /// Whether a frontend is attached.
  public var hasFrontend: Bool { state.withLock { !$0.frontends.isEmpty } }

  /// The name of the host's end, as in QEMU: with the prefix `disconnected:` for a socket without a client.
  var endpointName: String {
    guard case .connection = input, state.withLock({ $0.target == nil }) else { return options.endpointName }
    return "disconnected:" + options.endpointName
  }

  /// Whether the device's input is a terminal. The terminal is in raw mode, so it does not echo the keys.
  public var isTerminal: Bool {
    if case .standardInput = input { Terminal.isTerminal } else { false }
  }

  /// Starts to pass bytes. For a device without input it calls the frontends' `connected` itself.
  public func start() throws(SystemError) {
    let frontends = state.withLock { $0.frontends }
    if frontends.isEmpty { return }
    output?.onRoom { for frontend in frontends { frontend.outputRoom() } }
    let reader: Thread
    switch input {
    case .none:
      for frontend in frontends { frontend.connected() }
      return
    case .standardInput:
      let source = ChardevOutputBuffer.Target(try FileDescriptor(duplicating: STDIN_FILENO))
      Terminal.makeRaw()
      reader = try Thread(name: "chardev input") { [self] in
        var feed = ChardevFeed(frontends: frontends, interpreter: interpreter)
        feed.connected()
        if pass(from: source, through: &feed) { finish(&feed) }
      }
    case .connection:
      reader = try Thread(name: "chardev input") { [self] in
        var feed = ChardevFeed(frontends: frontends, interpreter: interpreter)
        serve(&feed)
      }
    }
    state.withLock { $0.reader = reader }
  }

  /// Ends the input, writes the remaining output, and restores the terminal. A frontend must not call it.
  public func stop() {
    stopping.store(true, ordering: .releasing)
    stopEvent.signal()
    // The output ends first, because its end releases a frontend that waits for room.
    output?.stop()
    let reader = state.withLock { state in
      defer { state.reader = nil }
      return state.reader
    }
    // The reader may wait in read(2) for input that another program on the same terminal took.
    reader?.join(patience: 500)
    // Removes the socket from the file system, and the reference cycle with frontends that hold this device.
    state.withLock { state in
      state.listener = nil
      state.frontends = []
      state.target = nil
    }
    if case .standardInput = input { Terminal.restore() }
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
  public func roomChanged() { roomEvent.signal() }

  // MARK: The reader's thread

  /// Serves one connection after the other. A socket that is itself a client has only one connection.
  private func serve(_ feed: inout ChardevFeed) {
    let listener = state.withLock { $0.listener }
    while true {
      if let target = state.withLock({ $0.target }) {
        feed.connected()
        guard pass(from: target, through: &feed) else { return }
        setTarget(nil)
        // Monitors no longer wait for this client, so they carry out the rest of its commands before the next client.
        feed.deliver()
        feed.disconnected()
      }
      guard let listener else { return finish(&feed) }
      guard let ready = wait(for: [listener.listener.rawValue], delivering: &feed) else { return }
      guard ready[0] else { continue }
      do {
        setTarget(ChardevOutputBuffer.Target(try listener.listener.accept()))
      } catch {
        // The client is gone; or the host has no free descriptor, and the next poll would report the client again.
        if wait(for: [], delivering: &feed, atMost: Self.acceptPause) == nil { return }
      }
    }
  }

  private func setTarget(_ target: ChardevOutputBuffer.Target?) {
    state.withLock { $0.target = target }
    output?.setTarget(target)
  }

  /// Passes bytes from the source to the frontends until the source ends.
  /// - Returns: false if Nestling ends first.
  private func pass(from source: ChardevOutputBuffer.Target, through feed: inout ChardevFeed) -> Bool {
    while true {
      // Read ahead even if the guest takes nothing: the input may be Ctrl-A X.
      let wantsMore = feed.wantsMore
      guard let ready = wait(for: wantsMore ? [source.file.rawValue] : [], delivering: &feed) else { return false }
      guard wantsMore, ready[0] else { continue }
      guard let bytes = read(from: source, into: &feed), !bytes.isEmpty else { return true }
      for action in feed.take(bytes) {
        switch action {
        case .exit: onExit()
        case .show(let text): write(Array(text.utf8))
        case .switchFocus: break
        }
      }
    }
  }

  /// - Returns: nil if the source fails or has no input.
  private func read(from source: ChardevOutputBuffer.Target, into feed: inout ChardevFeed) -> [UInt8]? {
    guard case .connection = input else { return try? source.file.read(count: ChardevFeed.piece) }
    guard let (bytes, files) = try? source.file.receive(count: ChardevFeed.piece) else { return nil }
    feed.take(files)
    return bytes
  }

  /// Delivers the rest of the input after its source has ended.
  private func finish(_ feed: inout ChardevFeed) {
    while feed.hasPending, wait(for: [], delivering: &feed) != nil {}
  }

  /// The pause after a failed accept, in milliseconds.
  private static let acceptPause: Int32 = 100

  /// Delivers input to the frontends, then waits until they take more or one of the descriptors is readable.
  /// - Parameter milliseconds: the longest wait; nil for no limit.
  /// - Returns: for each descriptor whether it is readable; nil if Nestling ends.
  private func wait(
    for descriptors: [Int32], delivering feed: inout ChardevFeed, atMost milliseconds: Int32? = nil
  ) -> [Bool]? {
    feed.deliver()
    if descriptors.isEmpty, !feed.hasPending, milliseconds == nil { return [] }
    let ready = Poll.readable(
      [stopEvent.rawValue, roomEvent.rawValue] + descriptors, milliseconds: milliseconds ?? -1)
    if ready[0] || stopping.load(ordering: .acquiring) { return nil }
    if ready[1] { roomEvent.take() }
    return Array(ready.dropFirst(2))
  }
}
