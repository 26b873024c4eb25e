import JSON
import Machine
import Synchronization

/// A monitor on a character device. Each client gets a new session. A QMP client gets events once it has sent
/// `qmp_capabilities`.
///
/// A client that reads slowly delays its own commands: its next command waits while more than 64 KiB of output, up to
/// the end of the last answer, are unsent. While 1 MiB is unsent, events for the client are dropped, and one
/// X_EVENTS_DROPPED reports their number.
///
/// Lock order: `session`, held while a command runs; then the machine's locks, which a command may take; then
/// `outgoing`. Sending an event takes only `outgoing`.
final class Monitor: ChardevFrontend {
  private enum Session {
    case control(QMPSession)
    case human(HumanSession)
  }

  private let device: Chardev
  private let target: any MonitorTarget
  private let options: MonitorOptions
  private let session: Mutex<Session>
  /// Held while an answer or an event is sent. Sending the answer to `qmp_capabilities` and enabling events are one
  /// step, so no event is lost in between.
  private let outgoing = Mutex(Outgoing())
  private let hasGreeted = Atomic<Bool>(false)

  private struct Outgoing {
    /// Whether a QMP client has sent `qmp_capabilities`.
    var takesEvents = false
    /// The position in the output where the latest answer ends.
    var end: UInt64 = 0
    /// The number of events dropped since the last X_EVENTS_DROPPED.
    var dropped: Int64 = 0
  }

  /// Makes a monitor and attaches it to the device.
  init(
    _ options: MonitorOptions, at device: Chardev, of target: any MonitorTarget
  ) throws(StartError) {
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

  /// Commands wait for the machine's answer.
  var mayBlock: Bool { true }

  func connected() {
    target.descriptors.setConnected(true)
    outgoing.withLock { $0 = Outgoing() }
    hasGreeted.store(false, ordering: .releasing)
    session.withLock { $0 = Self.makeSession(options, device) }
    // On a multiplexed device, a human monitor greets when it first gets the focus.
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
    // Write the prompt when the monitor gets the focus, and end the prompt's line when it loses the focus.
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
    outgoing.withLock { _ = reportDropped(&$0) }
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

  /// Whether the client must read before it gets more answers. If so, the device calls `outputRoom` later.
  private var isBehind: Bool { device.isBehind(outgoing.withLock { $0.end }) }

  private func send(_ answer: [UInt8], thenEvents: Bool = false) {
    outgoing.withLock { outgoing in
      _ = reportDropped(&outgoing)
      outgoing.end = device.send(answer)
      if thenEvents { outgoing.takesEvents = true }
    }
  }

  /// Sends X_EVENTS_DROPPED if events were dropped since the last one.
  /// - Returns: False if there is no room for the report, and so no room for an event after it.
  private func reportDropped(_ outgoing: inout Outgoing) -> Bool {
    if outgoing.dropped == 0 { return true }
    let event = MonitorEventName.eventsDropped.message(["count": .integer(outgoing.dropped)], at: HostTime.now)
    guard device.write(line(event)) else { return false }
    outgoing.dropped = 0
    return true
  }

  private func line(_ event: JSONValue) -> [UInt8] { QMPSession(pretty: options.pretty).line(event) }

  /// Sends the event of a notice, if it has one. Called on the thread that changed the machine.
  func notify(_ notice: MachineNotice, at time: UInt64) {
    guard case .control = options.mode, let event = notice.event(at: time) else { return }
    let line = line(event)
    outgoing.withLock { outgoing in
      guard outgoing.takesEvents else { return }
      if !reportDropped(&outgoing) || !device.write(line) { outgoing.dropped += 1 }
    }
  }
}
