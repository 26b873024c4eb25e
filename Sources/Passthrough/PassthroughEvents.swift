import Linux
import Synchronization
import VFIO

/// An event of a passed-through device, other than its interrupts.
public enum PassthroughEvent: Sendable {
  /// The device had an error that it cannot recover from.
  case error
  /// The host requests the device back.
  case request
}

/// The eventfds that a passed-through device signals, and the thread that waits for them: INTx, which goes through the
/// board's IOAPIC; an error of the device; the host's request to return the device.
final class PassthroughEvents: Sendable {
  /// A class, so that the eventfds that were created are released if a later one cannot be created.
  private final class Descriptor: Sendable {
    let event: EventDescriptor
    init() throws(SystemError) { event = try EventDescriptor() }
  }

  private let interruptEvent: Descriptor
  private let unmaskEvent: Descriptor
  private let errorEvent: Descriptor
  private let requestEvent: Descriptor
  private let endEvent: Descriptor
  private let thread = Mutex<Thread?>(nil)

  init() throws(SystemError) {
    interruptEvent = try Descriptor()
    unmaskEvent = try Descriptor()
    errorEvent = try Descriptor()
    requestEvent = try Descriptor()
    endEvent = try Descriptor()
  }

  var interrupt: PassthroughInterrupts.Events {
    .init(interrupt: interruptEvent.event.rawValue, unmask: unmaskEvent.event.rawValue)
  }

  /// Unmasks INTx, which the kernel masks whenever it signals the eventfd.
  func unmask() { unmaskEvent.event.signal() }

  /// Asks the device to signal errors and requests, if it supports them, and starts the thread that waits for all
  /// events. The thread calls the handlers.
  func start(
    of device: VFIODevice, name: String, onInterrupt: @escaping @Sendable () -> Void,
    onEvent: @escaping @Sendable (PassthroughEvent) -> Void
  ) throws(SystemError) {
    if try device.interruptCount(.error) > 0 { try device.signal(.error, to: [errorEvent.event.rawValue]) }
    if try device.interruptCount(.request) > 0 { try device.signal(.request, to: [requestEvent.event.rawValue]) }
    let started = try Thread(name: name) { [self] in
      while true {
        let ready = Poll.readable([
          interruptEvent.event.rawValue, errorEvent.event.rawValue, requestEvent.event.rawValue,
          endEvent.event.rawValue,
        ])
        if ready[3] { return }
        if ready[0], interruptEvent.event.take() { onInterrupt() }
        if ready[1], errorEvent.event.take() { onEvent(.error) }
        if ready[2], requestEvent.event.take() { onEvent(.request) }
      }
    }
    thread.withLock { $0 = started }
  }

  /// Returns when the thread has ended.
  func stop() {
    endEvent.event.signal()
    let ended = thread.withLock { thread in
      defer { thread = nil }
      return thread
    }
    ended?.join()
  }
}
