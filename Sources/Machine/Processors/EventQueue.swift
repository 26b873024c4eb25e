import Linux
import Synchronization

/// Where events wait for the machine's own thread. Of several the first decides, but a person's wish to end goes
/// before whatever the guest did.
final class EventQueue: Sendable {
  private let events = Mutex<[MachineEvent]>([])
  private let descriptor: EventDescriptor
  /// Called on the poster's thread, at once: the guest must not run on.
  private let halt = Mutex<(@Sendable () -> Void)?>(nil)

  init() throws(SystemError) { descriptor = try EventDescriptor() }

  var rawValue: Int32 { descriptor.rawValue }

  func onPost(_ handler: (@Sendable () -> Void)?) { halt.withLock { $0 = handler } }

  func post(_ event: MachineEvent) {
    events.withLock { $0.append(event) }
    halt.withLock({ $0 })?()
    descriptor.signal()
  }

  func take() -> MachineEvent? {
    descriptor.take()
    return events.withLock { events in
      defer { events.removeAll() }
      return events.contains(.quit) ? .quit : events.first
    }
  }
}
