import Hardware
import Synchronization

// The fault event, the invalidation event and the page request event (VT-d 7.3, 6.5.2.8, 7.5). Each has a control
// register with a mask bit and a pending bit. The three registers after it contain the message.

/// The register offsets of one event.
struct EventRegisters: Sendable {
  let control: Int

  static let fault = EventRegisters(control: RegisterOffset.faultEventControl)
  static let invalidation = EventRegisters(control: RegisterOffset.invalidationEventControl)
  static let pageRequest = EventRegisters(control: RegisterOffset.pageRequestEventControl)

  var data: Int { control + 4 }
  var address: Int { control + 8 }
  var upperAddress: Int { control + 12 }
}

extension UnitRegisters {
  private func message(of event: EventRegisters) -> InterruptMessage {
    InterruptMessage(
      address: UInt64(file[doubleword: event.upperAddress]) << 32 | UInt64(file[doubleword: event.address]),
      data: file[doubleword: event.data])
  }

  /// Raises an event: returns its message, or sets the pending bit (IP) and returns nil while the event is masked (IM).
  mutating func signal(_ event: EventRegisters) -> InterruptMessage? {
    file[doubleword: event.control][bit: 30] = true
    return unmasked(event)
  }

  /// Returns the message of an event that is pending and not masked, and clears its pending bit.
  mutating func unmasked(_ event: EventRegisters) -> InterruptMessage? {
    let control = file[doubleword: event.control]
    guard control[bit: 30], !control[bit: 31] else { return nil }
    file[doubleword: event.control][bit: 30] = false
    return message(of: event)
  }

  /// Completes a wait descriptor with the interrupt flag (VT-d 6.5.2.8).
  mutating func completeWait(_ effects: inout Effects) {
    // While software has not handled an earlier completion (IWC), further completions raise no event.
    guard file[doubleword: RegisterOffset.invalidationCompletionStatus] & 1 == 0 else { return }
    file[doubleword: RegisterOffset.invalidationCompletionStatus] |= 1  // IWC
    effects.invalidationEvent = signal(.invalidation)
  }
}

/// Sends one of the unit's own interrupts: the fault, invalidation or page request event. Interrupt remapping does not
/// apply to them (VT-d 5.1.7).
///
/// Lock order: `programmed`, then the route's own locks.
final class EventInterrupt: Sendable {
  private let route: any InterruptRoute
  private let programmed = Mutex<InterruptMessage?>(nil)

  init(route: any InterruptRoute) { self.route = route }

  /// Sends the event. The route keeps its message, so an unchanged message costs only the signal.
  func send(_ message: InterruptMessage) {
    programmed.withLock { last in
      if last != message {
        route.set(message)
        last = message
      }
      route.signal()
    }
  }
}
