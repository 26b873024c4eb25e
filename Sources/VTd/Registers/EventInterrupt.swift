import Hardware
import Synchronization

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
