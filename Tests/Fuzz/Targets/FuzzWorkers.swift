import Hardware
import Synchronization

/// Workers that run when the target calls `run`, as a thread runs some time after its wake-up.
final class FuzzWorkers: QueueWorkerSource {
  private let workers = Mutex<[FuzzWorker]>([])

  func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker {
    let worker = FuzzWorker(handler)
    workers.withLock { $0.append(worker) }
    return worker
  }

  /// Runs each woken worker once.
  func run() {
    for worker in workers.withLock({ $0 }) { worker.run() }
  }
}

final class FuzzWorker: QueueWorker {
  private let handler: @Sendable () -> Void
  private let state = Mutex((isWoken: false, isStopped: false))

  init(_ handler: @escaping @Sendable () -> Void) { self.handler = handler }

  func wake() { state.withLock { $0.isWoken = true } }
  func setDoorbell(at address: UInt64?) {}
  func stop() { state.withLock { $0.isStopped = true } }

  func run() {
    let runs = state.withLock { state in
      defer { state.isWoken = false }
      return state.isWoken && !state.isStopped
    }
    if runs { handler() }
  }
}

/// A timer that fires when the target calls `runOut`.
final class FuzzTimer: OneShotTimer {
  private let handler = Mutex<(@Sendable () -> Void)?>(nil)

  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
    self.handler.withLock { $0 = handler }
  }

  func runOut() {
    let taken = handler.withLock { handler in
      defer { handler = nil }
      return handler
    }
    taken?()
  }
}

/// A parking place that must not be used. An input runs on one thread. Therefore no request is in flight during an
/// invalidation.
final class FuzzParking: Parking {
  func park() { preconditionFailure("the only thread waits for itself") }
  func unpark() {}
}
