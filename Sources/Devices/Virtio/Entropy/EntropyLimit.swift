import Hardware
import Synchronization

/// The limit on a guest's entropy: `bytes` in each period. A period starts with its first request.
public struct EntropyLimit: Sendable {
  /// max-bytes
  public var bytes: UInt64
  /// period, in milliseconds.
  public var period: UInt32
  public var timer: any OneShotTimer

  public init(bytes: UInt64, period: UInt32, timer: any OneShotTimer) {
    self.bytes = bytes
    self.period = period
    self.timer = timer
  }
}

/// The state of an `EntropyLimit`. A reset of the device does not renew the limit, so that no guest can bypass it.
final class EntropyQuota: Sendable {
  private struct State {
    var remaining: UInt64
    var periodRuns = false
  }

  private let limit: EntropyLimit
  private let timer: Mutex<any OneShotTimer>
  private let state: Mutex<State>

  init(_ limit: EntropyLimit) {
    self.limit = limit
    timer = Mutex(limit.timer)
    state = Mutex(State(remaining: limit.bytes))
  }

  /// Wraps the timer that ends periods.
  func use(_ new: (any OneShotTimer) -> any OneShotTimer) {
    timer.withLock { $0 = new(limit.timer) }
  }

  /// The number of bytes that the guest may take now.
  var remaining: UInt64 { state.withLock { $0.remaining } }

  /// Subtracts the bytes that the guest took, and starts a period if none runs.
  /// - Parameter renewed: called when the period has ended.
  func take(_ count: UInt64, renewed: @escaping @Sendable () -> Void) {
    let starts = state.withLock { state in
      state.remaining -= min(count, state.remaining)
      defer { state.periodRuns = true }
      return !state.periodRuns
    }
    guard starts else { return }
    timer.withLock { $0 }.start(afterMilliseconds: limit.period) { [weak self] in
      self?.renew()
      renewed()
    }
  }

  private func renew() {
    state.withLock { $0 = State(remaining: limit.bytes) }
  }
}
