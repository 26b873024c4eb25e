import Hardware
import Synchronization

/// A clock that goes only when it is told to, with the timers that go by it: QEMU's QEMU_CLOCK_VIRTUAL under qtest.
///
/// Lock order: its lock is a leaf; timers' handlers are called without it, on the thread that moves the clock.
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

  /// As far as it goes: the protocol's numbers are signed.
  static let end = UInt64(Int64.max)

  private let state = Mutex(State())

  /// In nanoseconds since the machine was made.
  var now: UInt64 { state.withLock { $0.now } }

  /// When the next timer is due; nil where none runs.
  var nextDeadline: UInt64? { state.withLock { $0.deadlines.lazy.map(\.time).min() } }

  /// Moves on to a time, step by step where timers are due on the way. Does nothing for a time that is past.
  /// - Returns: what the clock says then.
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
      // A timer never fires at once, so no handler that starts it again keeps the clock where it is.
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
