import Hardware
import Synchronization

/// The registers under their lock, and the unit's interrupts. They are a separate object, so that a port can record a
/// fault without a reference to the unit.
///
/// Lock order: `state`, then the ports' locks or the interrupt remapper's lock, which a command takes while it holds
/// `state`. Interrupts are sent after `state` is released.
final class RegisterBlock: Sendable {
  let state: Mutex<UnitRegisters>
  private let faultEvent: EventInterrupt
  private let invalidationEvent: EventInterrupt
  private let pageRequestEvent: EventInterrupt?
  private let trace: Trace?

  init(
    _ capabilities: Capabilities, faultEvent: any InterruptRoute, invalidationEvent: any InterruptRoute,
    pageRequestEvent: (any InterruptRoute)?, trace: Trace?
  ) {
    self.trace = trace
    state = Mutex(UnitRegisters(capabilities))
    self.faultEvent = EventInterrupt(route: faultEvent)
    self.invalidationEvent = EventInterrupt(route: invalidationEvent)
    self.pageRequestEvent = pageRequestEvent.map { EventInterrupt(route: $0) }
  }

  func record(_ fault: FaultRecord) {
    let effects = state.withLock { registers in
      var effects = UnitRegisters.Effects()
      registers.record(fault, &effects)
      return effects
    }
    send(effects)
  }

  func send(_ effects: UnitRegisters.Effects) {
    send(effects.faultEvent, "fault", faultEvent)
    send(effects.invalidationEvent, "invalidation", invalidationEvent)
    send(effects.pageRequestEvent, "page request", pageRequestEvent)
  }

  private func send(_ message: InterruptMessage?, _ name: String, _ event: EventInterrupt?) {
    guard let message else { return }
    trace?.record(.eventRaised, [.word("event", name), .hex("addr", message.address), .hex("data", message.data)])
    event?.send(message)
  }
}
