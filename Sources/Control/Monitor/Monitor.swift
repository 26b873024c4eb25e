import JSON
import Machine
import Synchronization

/// A monitor at a character device: its sessions, one after the other, and the events for whoever has negotiated.
///
/// A client that does not read what it is sent is waited for: its next command is carried out when it has read most of
/// the answers before. Events for it are dropped while a megabyte waits, and X_EVENTS_DROPPED in their place says how
/// many those were.
///
/// Lock order: the session's lock is held while a command runs, which may take the machine's; then `outgoing`, all
/// that an event takes of ours.
final class Monitor: ChardevFrontend {
  private enum Session {
    case control(QMPSession)
    case human(HumanSession)
  }

  private let device: Chardev
  private let target: any MonitorTarget
  private let options: MonitorOptions
  private let session: Mutex<Session>
  /// Held while something is sent: one who has the answer that brings events misses none.
  private let outgoing = Mutex(Outgoing())
  private let hasGreeted = Atomic<Bool>(false)

  private struct Outgoing {
    /// The client has negotiated.
    var takesEvents = false
    /// Where the latest answer ends.
    var end: UInt64 = 0
    /// How many events the client was not sent since it was last told.
    var dropped: Int64 = 0
  }

  /// Attaches itself.
  init(_ options: MonitorOptions, at device: Chardev, of target: any MonitorTarget) throws(Chardev
    .InUse)
  {
    self.device = device
    self.target = target
    self.options = options
    session = Mutex(Self.makeSession(options, device))
    try device.attach(self)
  }

  private static func makeSession(_ options: MonitorOptions, _ device: Chardev) -> Session {
    switch options.mode {
    case .control: .control(QMPSession(pretty: options.pretty))
    case .readline: .human(HumanSession(echoes: device.isTerminal))
    }
  }

  func connected() {
    target.descriptors.setConnected(true)
    outgoing.withLock { $0 = Outgoing() }
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
    // Where it cannot be seen yet, it need not be there.
    if focused {
      device.write(Array(HumanSession.prompt.utf8))
    } else if hasGreeted.load(ordering: .acquiring) {
      device.write([0x0a])
    }
  }

  func receive(_ bytes: ArraySlice<UInt8>) -> Int {
    if isBehind { return 0 }
    return session.withLock { session in
      switch session {
      case .control(var qmp):
        defer { session = .control(qmp) }
        return qmp.receive(bytes, on: target, act)
      case .human(var human):
        defer { session = .human(human) }
        return human.receive(bytes, on: target, act)
      }
    }
  }

  func outputRoom() {
    outgoing.withLock { _ = tellOfDropped(&$0) }
    device.roomChanged()
  }

  func receive(_ files: [PassedFile]) { target.descriptors.offer(files) }

  func disconnected() {
    target.descriptors.setConnected(false)
    outgoing.withLock { $0 = Outgoing() }
  }

  private func act(_ output: QMPSession.Output) -> Bool {
    switch output {
    case .send(let bytes): send(bytes)
    case .negotiated(let answer): send(answer, thenEvents: true)
    case .perform(let action): action()
    }
    return !isBehind
  }

  /// Whether the client has to read before it is answered further. If so, `outputRoom` follows.
  private var isBehind: Bool { device.isBehind(outgoing.withLock { $0.end }) }

  private func send(_ answer: [UInt8], thenEvents: Bool = false) {
    outgoing.withLock { outgoing in
      _ = tellOfDropped(&outgoing)
      outgoing.end = device.send(answer)
      if thenEvents { outgoing.takesEvents = true }
    }
  }

  /// - Returns: false if there is no room for that, and so for no event after it.
  private func tellOfDropped(_ outgoing: inout Outgoing) -> Bool {
    if outgoing.dropped == 0 { return true }
    let event = MonitorEventName.eventsDropped.message(["count": .integer(outgoing.dropped)], at: HostTime.now)
    guard device.write(line(event)) else { return false }
    outgoing.dropped = 0
    return true
  }

  private func line(_ event: JSONValue) -> [UInt8] { QMPSession(pretty: options.pretty).line(event) }

  /// Something has happened to the machine. From the thread on which it did.
  func tell(_ notice: MachineNotice, at time: UInt64) {
    guard case .control = options.mode, let event = notice.event(at: time) else { return }
    let line = line(event)
    outgoing.withLock { outgoing in
      guard outgoing.takesEvents else { return }
      if !tellOfDropped(&outgoing) || !device.write(line) { outgoing.dropped += 1 }
    }
  }
}
