import Linux
import Synchronization
import VFIO

/// The eventfds by which a passed-through device calls on the machine, and the thread that waits for them: INTx, which
/// has to pass the board's IOAPIC, an error of the device, the host's wish to have it back.
final class PassthroughEvents: Sendable {
  enum Event: Int, CaseIterable, Sendable {
    case interrupt
    case error
    case request
    case end
  }

  /// So that those that are there go when a later one cannot be had.
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

  /// Lets INTx come again, which the kernel masked when it came.
  func unmask() { unmaskEvent.event.signal() }

  /// Has the device signal errors and requests, where it knows them, and waits for all events from now on.
  func start(of device: VFIODevice, name: String, _ handler: @escaping @Sendable (Event) -> Void) throws(SystemError) {
    if try device.interruptCount(.error) > 0 { try device.signal(.error, to: [errorEvent.event.rawValue]) }
    if try device.interruptCount(.request) > 0 { try device.signal(.request, to: [requestEvent.event.rawValue]) }
    let started = try Thread(name: name) { [self] in
      while true {
        let ready = Poll.readable([
          interruptEvent.event.rawValue, errorEvent.event.rawValue, requestEvent.event.rawValue,
          endEvent.event.rawValue,
        ])
        if ready[3] { return }
        if ready[0], interruptEvent.event.take() { handler(.interrupt) }
        if ready[1], errorEvent.event.take() { handler(.error) }
        if ready[2], requestEvent.event.take() { handler(.request) }
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
