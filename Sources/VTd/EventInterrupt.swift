import Hardware
import Synchronization

/// Sends one of the unit's own interrupts, the fault event or the invalidation event. They are not
/// remapped (VT-d 5.1.7).
///
/// Lock order: its lock is a leaf but for the route's own.
final class EventInterrupt: Sendable {
  private let route: any InterruptRoute
  private let programmed = Mutex<InterruptMessage?>(nil)

  init(route: any InterruptRoute) { self.route = route }

  /// The route keeps its message, so a message as before costs no more than the signal.
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
