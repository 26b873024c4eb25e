import Linux
import Synchronization

/// Waiting for a machine to come to a state that was asked for. Not for the machine's own thread.
public final class MachineWait: Sendable {
  private let control: any MachineControl
  private let condition = Mutex<[Waiter]>([])

  private final class Waiter: Sendable {
    let event: EventDescriptor
    init() throws(SystemError) { event = try EventDescriptor() }
  }

  public init(_ control: any MachineControl) throws(StartError) { self.control = control }

  /// Has those who wait look again. Whoever listens to the machine calls it.
  public func noticed() {
    for waiter in condition.withLock({ $0 }) { waiter.event.signal() }
  }

  /// Returns when the state is one that satisfies, or the machine ends; after ten seconds in any case, as a CPU may be
  /// stuck in the host's kernel.
  public func wait(until satisfies: (MachineStatus) -> Bool) {
    guard let waiter = try? Waiter() else { return }
    condition.withLock { $0.append(waiter) }
    defer { condition.withLock { $0.removeAll { $0 === waiter } } }
    let end = Clock.monotonic() + 10_000_000_000
    while true {
      let status = control.status
      if satisfies(status) || status == .shutdown { return }
      let now = Clock.monotonic()
      guard now < end else { return }
      _ = Poll.readable([waiter.event.rawValue], milliseconds: Int32(clamping: (end - now) / 1_000_000 + 1))
      waiter.event.take()
    }
  }
}

/// The host's time of day, in nanoseconds since 1970.
public enum HostTime {
  public static var now: UInt64 { Clock.realtime() }
  /// Nanoseconds of a clock that never goes back.
  public static var monotonic: UInt64 { Clock.monotonic() }
}
