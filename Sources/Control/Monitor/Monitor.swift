import Machine
import Synchronization

/// A monitor at a character device: its sessions, one after the other, and the events for whoever has negotiated.
///
/// Lock order: the session's lock is held while a command runs, which may take the machine's; then `takesEvents`, all
/// that an event takes of ours. A client that does not read what it is sent is hung up on, and so holds up nobody else.
final class Monitor: CharacterFrontend {
  private enum Session {
    case control(QMPSession)
    case human(HumanSession)
  }

  private let device: CharacterDevice
  private let target: any MonitorTarget
  private let options: MonitorOptions
  private let session: Mutex<Session>
  /// Held while the answer that brings events, and while an event, is sent: one who has the answer misses none.
  private let takesEvents = Mutex(false)
  private let hasGreeted = Atomic<Bool>(false)

  /// Attaches itself.
  init(_ options: MonitorOptions, at device: CharacterDevice, of target: any MonitorTarget) throws(CharacterDevice
    .InUse)
  {
    self.device = device
    self.target = target
    self.options = options
    session = Mutex(Self.makeSession(options, device))
    try device.attach(self)
  }

  private static func makeSession(_ options: MonitorOptions, _ device: CharacterDevice) -> Session {
    switch options.mode {
    case .control: .control(QMPSession(pretty: options.pretty))
    case .readline: .human(HumanSession(echoes: device.isTerminal))
    }
  }

  func connected() {
    takesEvents.withLock { $0 = false }
    hasGreeted.store(false, ordering: .releasing)
    session.withLock { $0 = Self.makeSession(options, device) }
    // Behind a serial port's console a person sees nothing of the monitor until he comes to it.
    if case .control = options.mode { greet() } else if !device.options.multiplexed { greet() }
  }

  private func greet() {
    hasGreeted.store(true, ordering: .releasing)
    send(
      session.withLock { session in
        switch session {
        case .control(let session): session.greeting
        case .human(let session): session.greeting
        }
      })
  }

  func focusChanged(_ focused: Bool) {
    guard options.mode == .readline else { return }
    if focused, !hasGreeted.load(ordering: .acquiring) { return greet() }
    if focused { send(Array(HumanSession.prompt.utf8)) } else if hasGreeted.load(ordering: .acquiring) { send([0x0a]) }
  }

  func receive(_ bytes: ArraySlice<UInt8>) {
    session.withLock { session in
      switch session {
      case .control(var qmp):
        qmp.receive(bytes, on: target, act)
        session = .control(qmp)
      case .human(var human):
        human.receive(bytes, on: target, act)
        session = .human(human)
      }
    }
  }

  func disconnected() { takesEvents.withLock { $0 = false } }

  private func act(_ output: QMPSession.Output) -> Bool {
    switch output {
    case .send(let bytes): return send(bytes)
    case .negotiated(let answer):
      return takesEvents.withLock { takesEvents in
        takesEvents = true
        return send(answer)
      }
    case .perform(let action): action()
    }
    return true
  }

  /// - Returns: false if nobody reads there.
  @discardableResult
  private func send(_ bytes: [UInt8]) -> Bool {
    if device.write(bytes) { return true }
    device.disconnect()
    return false
  }

  /// Something has happened to the machine. From the thread on which it did.
  func tell(_ notice: MachineNotice, at time: UInt64) {
    guard case .control = options.mode, let event = notice.event(at: time) else { return }
    let line = QMPSession(pretty: options.pretty).line(event)
    takesEvents.withLock { if $0 { send(line) } }
  }
}
