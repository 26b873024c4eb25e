import Devices
import Glibc
import Linux
import Synchronization

/// The host's end of the serial port: standard input and output, a file, a socket, or nothing.
final class SerialConnection: Sendable {
  private enum Input: Sendable {
    case none
    case stdio
    case socket
  }

  private struct State {
    var port: SerialPort?
    var reader: Thread?
    var interpreter: (any InputInterpreter)?
  }

  let output: any CharacterOutput
  private let buffered: BufferedOutput?
  private let input: Input
  private let listener: Listener?
  /// The connection that was made before the guest starts.
  private let connected: BufferedOutput.Target?
  private let events: EventQueue
  private let stopEvent: EventDescriptor
  private let roomEvent: EventDescriptor
  private let stopping = Atomic<Bool>(false)
  private let state: Mutex<State>

  private final class Listener: Sendable {
    let socket: UnixListener
    init(_ socket: consuming UnixListener) { self.socket = socket }
  }

  private final class NoOutput: CharacterOutput {
    func write(_ byte: UInt8) {}
  }

  /// Opens the backend.
  /// - Parameters:
  ///   - interpreter: looks through what is typed on standard input.
  ///   - interruption: a descriptor that has input when a person gives up the wait for a client.
  /// - Returns: nil for `.none`: there is no port then.
  init?(
    _ backend: SerialBackend, interpreter: any InputInterpreter, events: EventQueue, interruption: Int32? = nil
  ) throws(SystemError) {
    self.events = events
    stopEvent = try EventDescriptor()
    roomEvent = try EventDescriptor()
    state = Mutex(State(interpreter: interpreter))
    switch backend {
    case .none: return nil
    case .null:
      output = NoOutput()
      buffered = nil
      input = .none
      listener = nil
      connected = nil
    case .stdio:
      let buffered = try BufferedOutput(to: BufferedOutput.Target(try FileDescriptor(duplicating: STDOUT_FILENO)))
      output = buffered
      self.buffered = buffered
      input = .stdio
      listener = nil
      connected = nil
    case .file(let path):
      let file = try FileDescriptor(opening: path, O_WRONLY | O_CREAT | O_TRUNC, mode: 0o666)
      let buffered = try BufferedOutput(to: BufferedOutput.Target(file))
      output = buffered
      self.buffered = buffered
      input = .none
      listener = nil
      connected = nil
    case .unixSocket(let path, let server, let wait):
      let listener = server ? Listener(try UnixListener(at: path)) : nil
      var target: BufferedOutput.Target?
      if let listener {
        if wait {
          if let interruption, Poll.readable([interruption, listener.socket.rawValue])[0] {
            throw SystemError("accept", path, code: EINTR)
          }
          target = BufferedOutput.Target(try listener.socket.accept())
        }
      } else {
        target = BufferedOutput.Target(try FileDescriptor(connectingTo: path))
      }
      let buffered = try BufferedOutput(to: target)
      output = buffered
      self.buffered = buffered
      input = .socket
      self.listener = listener
      connected = target
    }
  }

  /// Begins to pass input to the port.
  func start(port: SerialPort) throws(SystemError) {
    port.onReceiveRoom { [self] in roomEvent.signal() }
    state.withLock { $0.port = port }
    let reader: Thread
    switch input {
    case .none: return
    case .stdio:
      let file = try FileDescriptor(duplicating: STDIN_FILENO)
      Terminal.makeRaw()
      let source = BufferedOutput.Target(file)
      reader = try Thread(name: "serial input") { [self] in serveStandardInput(port, source) }
    case .socket:
      reader = try Thread(name: "serial input") { [self] in serve(port) }
    }
    state.withLock { $0.reader = reader }
  }

  /// Ends input, and output once it is written. The terminal is as it was before.
  func stop() {
    stopping.store(true, ordering: .releasing)
    stopEvent.signal()
    let reader = state.withLock { state in
      defer { state.reader = nil }
      return state.reader
    }
    reader?.join()
    state.withLock { state in
      state.port?.onReceiveRoom(nil)
      state.port = nil
    }
    buffered?.stop()
    Terminal.restore()
  }

  /// One connection after the other; a client's socket has but one.
  private func serve(_ port: SerialPort) {
    var current = connected
    /// Read, and not yet taken by the guest; it may outlast the connection that it came by.
    var pending: [UInt8] = []
    while true {
      if let target = current {
        guard pass(from: target, to: port, pending: &pending, interpreted: false) else { return }
        buffered?.setTarget(nil)
        current = nil
      }
      guard let listener else { return finish(pending, to: port) }
      let ready = wait(for: [listener.socket.rawValue], delivering: &pending, to: port)
      guard let ready else { return }
      guard ready[0] else { continue }
      do { current = BufferedOutput.Target(try listener.socket.accept()) } catch { continue }
      buffered?.setTarget(current)
    }
  }

  private func serveStandardInput(_ port: SerialPort, _ source: BufferedOutput.Target) {
    var pending: [UInt8] = []
    if pass(from: source, to: port, pending: &pending, interpreted: true) { finish(pending, to: port) }
  }

  /// Passes bytes on until the source ends.
  /// - Returns: false when it is Nestling that ends.
  private func pass(
    from source: BufferedOutput.Target, to port: SerialPort, pending: inout [UInt8], interpreted: Bool
  ) -> Bool {
    while true {
      // What is typed is read even when the guest takes nothing: it may be Ctrl-A X.
      let wantsMore = pending.count < 4096
      let ready = wait(for: wantsMore ? [source.file.rawValue] : [], delivering: &pending, to: port)
      guard let ready else { return false }
      guard wantsMore, ready[0] else { continue }
      guard let bytes = try? source.file.read(count: 256), !bytes.isEmpty else { return true }
      if interpreted { interpret(bytes, into: &pending) } else { pending += bytes }
    }
  }

  /// The source has ended: what came from it is for the guest all the same.
  private func finish(_ rest: [UInt8], to port: SerialPort) {
    var pending = rest
    while !pending.isEmpty, wait(for: [], delivering: &pending, to: port) != nil {}
  }

  /// Gives the guest what it takes, then waits until it takes more or one of the descriptors has something.
  /// - Returns: for each descriptor whether it has; nil when Nestling ends.
  private func wait(for descriptors: [Int32], delivering pending: inout [UInt8], to port: SerialPort) -> [Bool]? {
    var room = port.receiveRoom
    while room > 0, !pending.isEmpty {
      port.receive(pending.prefix(room))
      pending.removeFirst(min(room, pending.count))
      room = port.receiveRoom
    }
    if descriptors.isEmpty, pending.isEmpty { return [] }
    let ready = Poll.readable([stopEvent.rawValue, roomEvent.rawValue] + descriptors)
    if ready[0] || stopping.load(ordering: .acquiring) { return nil }
    if ready[1] { roomEvent.take() }
    return Array(ready.dropFirst(2))
  }

  private func interpret(_ bytes: [UInt8], into pending: inout [UInt8]) {
    var forGuest: [UInt8] = []
    let actions = state.withLock { $0.interpreter?.receive(bytes, guestBytes: &forGuest) ?? [] }
    pending += forGuest
    for action in actions {
      switch action {
      case .exit: events.post(.quit(.terminal))
      case .show(let text): buffered?.write(text)
      }
    }
  }
}
