import Hardware
import Synchronization

/// A clock that advances only by calls of `advance`, and its timers: QEMU's QEMU_CLOCK_VIRTUAL under qtest.
///
/// Lock order: code that holds its lock takes no other lock; timers' handlers are called without it, on the thread that
/// advances the clock.
final class SteppedClock: MachineClock {
  fileprivate struct Deadline {
    /// In nanoseconds.
    let time: UInt64
    let timer: Int
    let handler: @Sendable () -> Void
  }

  private struct State {
    var now: UInt64 = 0
    var deadlines: [Deadline] = []
    var timers = 0
  }

  /// The latest time of the clock, because the protocol's numbers are signed.
  static let end = UInt64(Int64.max)

  private let state = Mutex(State())

  /// The time in nanoseconds since the machine was made.
  var now: UInt64 { state.withLock { $0.now } }

  /// The time when the next timer is due; nil if no timer is running.
  var nextDeadline: UInt64? { state.withLock { $0.deadlines.lazy.map(\.time).min() } }

  /// Advances the clock to a time, and calls the handlers of the timers that become due, each at its time. A time in
  /// the past changes nothing.
  /// - Returns: the new time.
  func advance(to time: UInt64) -> UInt64 {
    let time = min(time, Self.end)
    while true {
      let due = state.withLock { state -> Deadline? in
        let next = state.deadlines.indices.min { state.deadlines[$0].time < state.deadlines[$1].time }
        guard let next, state.deadlines[next].time <= time else {
          state.now = max(state.now, time)
          return nil
        }
        state.now = max(state.now, state.deadlines[next].time)
        return state.deadlines.remove(at: next)
      }
      guard let due else { return now }
      due.handler()
    }
  }

  func makeTimer() -> any OneShotTimer {
    let number = state.withLock { state in
      state.timers += 1
      return state.timers
    }
    return Timer(clock: self, number: number)
  }

  private final class Timer: OneShotTimer {
    private let clock: SteppedClock
    private let number: Int

    init(clock: SteppedClock, number: Int) {
      self.clock = clock
      self.number = number
    }

    deinit { clock.cancel(number) }

    func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
      // A timer takes at least 1 ns. Otherwise `advance` would not return if a handler restarts its timer with 0.
      clock.start(number, after: max(1, UInt64(milliseconds) * 1_000_000), handler)
    }
  }

  private func start(_ timer: Int, after nanoseconds: UInt64, _ handler: @escaping @Sendable () -> Void) {
    state.withLock { state in
      state.deadlines.removeAll { $0.timer == timer }
      state.deadlines.append(Deadline(time: state.now &+ nanoseconds, timer: timer, handler: handler))
    }
  }

  private func cancel(_ timer: Int) { state.withLock { $0.deadlines.removeAll { $0.timer == timer } } }
}
