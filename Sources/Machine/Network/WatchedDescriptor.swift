import Linux
import Synchronization

/// A descriptor on a loop, whose interest the loop's handler and the workers of a device change.
///
/// Lock order: `interest`, then the loop's.
final class WatchedDescriptor: Sendable {
  private let registration: EventLoop.Registration
  private let interest: Mutex<EventLoop.Events>

  /// Registers a descriptor. No event is delivered before `begin`.
  /// - Parameter interest: the events from `begin` on.
  init(
    _ descriptor: Int32, on loop: EventLoop, _ interest: EventLoop.Events,
    _ handler: @escaping @Sendable (EventLoop.Events) -> Void
  ) throws(SystemError) {
    registration = try loop.register(descriptor, [], handler)
    self.interest = Mutex(interest)
  }

  func begin() { change { _ in } }
  func add(_ events: EventLoop.Events) { change { $0.formUnion(events) } }
  func remove(_ events: EventLoop.Events) { change { $0.subtract(events) } }
  /// Ends the registration. Must be called before the descriptor is closed.
  func end() { registration.cancel() }

  private func change(_ body: (inout EventLoop.Events) -> Void) {
    interest.withLock { interest in
      body(&interest)
      registration.setInterest(interest)
    }
  }
}
