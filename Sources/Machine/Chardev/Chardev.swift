import Glibc
import Linux
import Synchronization

/// A character device: bytes between its frontends and somebody at the host's end. Whatever carries bytes to and from
/// a person or a program is one of these: the serial port, monitors, the qtest server.
///
/// Two threads serve it between `start` and `stop`: one reads and calls the frontends, the other writes. Lock order:
/// the locks here are leaves; no frontend is called with one held.
public final class Chardev: Sendable {
  /// Only one frontend can have a device that is not multiplexed.
  public struct InUse: Error, Hashable, Sendable, CustomStringConvertible {
    public let id: String
    public var description: String { "chardev '\(id)' is already in use" }
  }

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

  /// Opens it, and where the options ask for it waits for the first client.
  /// - Parameters:
  ///   - interpreter: looks through what is typed on standard input, and into any multiplexed device.
  ///   - interruption: a descriptor that has input when a person gives up the wait for a client.
  ///   - onExit: a person at this device has asked for Nestling's end.
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

  /// Gives it a frontend; of several of a multiplexed device the first has the focus. To be called before `start`.
  public func attach(_ frontend: any ChardevFrontend) throws(InUse) {
    let attached = state.withLock { state in
      guard state.frontends.isEmpty || options.multiplexed else { return false }
      state.frontends.append(frontend)
      return true
    }
    if !attached { throw InUse(id: options.id?.text ?? type(of: options).typeName) }
  }

  /// Whether somebody here uses it.
  public var hasFrontend: Bool { state.withLock { !$0.frontends.isEmpty } }

  /// What it is connected to, as QEMU tells it: `disconnected:` and the socket where there is no client.
  var endpointName: String {
    guard case .connection = input, state.withLock({ $0.target == nil }) else { return options.endpointName }
    return "disconnected:" + options.endpointName
  }

  /// Whether a person types into it, whose keys nobody shows: a terminal in raw mode.
  public var isTerminal: Bool {
    if case .standardInput = input { Terminal.isTerminal } else { false }
  }

  /// Begins to pass bytes. Where nothing can ever come in, `connected` is called from here.
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

  /// Ends input, and output once it is written. The terminal is as it was before. Not for a frontend to call.
  public func stop() {
    stopping.store(true, ordering: .releasing)
    stopEvent.signal()
    // A frontend that waits for room is let go by the output's end, so that comes first.
    output?.stop()
    let reader = state.withLock { state in
      defer { state.reader = nil }
      return state.reader
    }
    // The reader may wait in read(2) for input that another program on the same terminal has taken.
    reader?.join(patience: 500)
    // The socket is gone from the file system, and a frontend that holds this device does not keep itself alive.
    state.withLock { state in
      state.listener = nil
      state.frontends = []
      state.target = nil
    }
    if case .standardInput = input { Terminal.restore() }
  }

  // MARK: What frontends call, from any thread

  /// Sends one byte without waiting. Without a reader the byte is dropped.
  /// - Returns: false where too much is on its way already, as the other end does not read. `outputRoom` follows.
  public func write(_ byte: UInt8) -> Bool { output?.write(byte) ?? true }

  /// Sends all of it or nothing. It does not wait.
  /// - Returns: false where too much is on its way already, as the other end does not read. `outputRoom` follows.
  @discardableResult
  public func write(_ bytes: [UInt8]) -> Bool { output?.write(bytes) ?? true }

  /// Sends all of it, whatever is on its way already: an answer, whose sender looks at `isBehind` before the next. It
  /// does not wait.
  /// - Returns: where it ends, for `isBehind`.
  public func send(_ answer: [UInt8]) -> UInt64 { output?.send(answer) ?? 0 }

  /// Whether the other end is slow to read what was sent up to `end`. If so, `outputRoom` follows.
  public func isBehind(_ end: UInt64) -> Bool { output?.isBehind(end) ?? false }

  /// Sends all of it, waiting while the other end is slow.
  /// - Returns: false where the other end has gone before it took all, or Nestling ends.
  public func writeWaiting(_ bytes: [UInt8]) -> Bool { output?.writeWaiting(bytes) ?? true }

  /// A frontend takes bytes again.
  public func roomChanged() { roomEvent.signal() }

  // MARK: The reader

  /// One connection after the other; a client's socket has but one.
  private func serve(_ feed: inout ChardevFeed) {
    let listener = state.withLock { $0.listener }
    while true {
      if let target = state.withLock({ $0.target }) {
        feed.connected()
        guard pass(from: target, through: &feed) else { return }
        setTarget(nil)
        // Monitors no longer wait for this client: they carry out the rest of its commands before the next one comes.
        feed.deliver()
        feed.disconnected()
      }
      guard let listener else { return finish(&feed) }
      guard let ready = wait(for: [listener.listener.rawValue], delivering: &feed) else { return }
      guard ready[0] else { continue }
      do {
        setTarget(ChardevOutputBuffer.Target(try listener.listener.accept()))
      } catch {
        // The client has gone; or the host has no descriptor left, and the next poll would report the client again.
        if wait(for: [], delivering: &feed, atMost: Self.acceptPause) == nil { return }
      }
    }
  }

  private func setTarget(_ target: ChardevOutputBuffer.Target?) {
    state.withLock { $0.target = target }
    output?.setTarget(target)
  }

  /// Passes bytes on until the source ends.
  /// - Returns: false when it is Nestling that ends.
  private func pass(from source: ChardevOutputBuffer.Target, through feed: inout ChardevFeed) -> Bool {
    while true {
      // What is typed is read even when the guest takes nothing: it may be Ctrl-A X.
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

  /// - Returns: nil for a source that fails, or has nothing after all.
  private func read(from source: ChardevOutputBuffer.Target, into feed: inout ChardevFeed) -> [UInt8]? {
    guard case .connection = input else { return try? source.file.read(count: ChardevFeed.piece) }
    guard let (bytes, files) = try? source.file.receive(count: ChardevFeed.piece) else { return nil }
    feed.take(files)
    return bytes
  }

  /// The source has ended: what came from it is delivered all the same.
  private func finish(_ feed: inout ChardevFeed) {
    while feed.hasPending, wait(for: [], delivering: &feed) != nil {}
  }

  /// The time between two tries of accept where the host has no descriptor left, in milliseconds.
  private static let acceptPause: Int32 = 100

  /// Gives the frontends what they take, then waits until they take more or one of the descriptors has something.
  /// - Parameter milliseconds: the longest wait; nil for no limit.
  /// - Returns: for each descriptor whether it has; nil when Nestling ends.
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
