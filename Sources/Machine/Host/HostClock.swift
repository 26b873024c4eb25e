import Devices
import Hardware
import Linux
import Synchronization

/// The host's clocks, in nanoseconds.
public enum HostTime {
  /// The time of day since 1970.
  public static var now: UInt64 { Clock.realtime() }
  /// The time since an unspecified moment. It never decreases.
  public static var monotonic: UInt64 { Clock.monotonic() }
}

/// The host's monotonic time, for a guest that runs in real time.
final class HostClock: MachineClock {
  var now: UInt64 { Clock.monotonic() }

  func makeTimer() throws(SystemError) -> any OneShotTimer { try ThreadTimer() }
}

/// A one-shot timer with its own thread, which begins with the first `start` and ends with the timer.
final class ThreadTimer: OneShotTimer {
  /// The state that the thread and the timer share. The thread does not keep the timer alive.
  ///
  /// Lock order: code that holds its lock takes no other lock; the handler is called without it.
  private final class Schedule: Sendable {
    struct State {
      /// The handler and its time, in nanoseconds of the monotonic clock; nil if the timer is not running.
      var due: (time: UInt64, handler: @Sendable () -> Void)?
      var ends = false
    }

    let changed: EventDescriptor
    let state = Mutex(State())

    init() throws(SystemError) { changed = try EventDescriptor() }

    func run() {
      while true {
        let now = Clock.monotonic()
        let (ends, handler, wait) = state.withLock { state -> (Bool, (@Sendable () -> Void)?, UInt64?) in
          guard let due = state.due else { return (state.ends, nil, nil) }
          guard due.time <= now else { return (state.ends, nil, due.time - now) }
          state.due = nil
          return (state.ends, due.handler, nil)
        }
        if ends { return }
        if let handler {
          handler()
        } else {
          let milliseconds = wait.map { Int32(clamping: ($0 + 999_999) / 1_000_000) } ?? -1
          _ = Poll.readable([changed.rawValue], milliseconds: milliseconds)
          changed.take()
        }
      }
    }
  }

  private let schedule: Schedule
  private let thread = Mutex<Thread?>(nil)

  init() throws(SystemError) { schedule = try Schedule() }

  deinit {
    schedule.state.withLock { $0.ends = true }
    schedule.changed.signal()
  }

  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
    schedule.state.withLock { $0.due = (Clock.monotonic() &+ UInt64(milliseconds) * 1_000_000, handler) }
    schedule.changed.signal()
    thread.withLock { thread in
      // If the host has no thread, the timer never fires. For virtio-rng the guest then gets less entropy, not more.
      if thread == nil { thread = try? Thread(name: "timer") { [schedule] in schedule.run() } }
    }
  }
}
