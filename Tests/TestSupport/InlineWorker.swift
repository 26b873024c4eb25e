import Hardware
import Synchronization

/// Workers without threads: `wake` runs the handler before it returns.
public final class InlineWorkerSource: QueueWorkerSource {
  private let made = Mutex<[InlineWorker]>([])

  public init() {}

  /// The workers in the order in which they were created.
  public var workers: [InlineWorker] { made.withLock { $0 } }

  public func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker {
    let worker = InlineWorker(name: name, handler: handler)
    made.withLock { $0.append(worker) }
    return worker
  }
}

public final class InlineWorker: QueueWorker {
  private struct State {
    var doorbell: UInt64?
    var isStopped = false
    var isLent = false
    var kicks = 0
  }

  public let name: String
  private let handler: @Sendable () -> Void
  private let state = Mutex(State())

  init(name: String, handler: @escaping @Sendable () -> Void) {
    self.name = name
    self.handler = handler
  }

  public var doorbell: UInt64? { state.withLock { $0.doorbell } }
  public var stopped: Bool { state.withLock { $0.isStopped } }
  /// Whether another server has the queue.
  public var isLent: Bool { state.withLock { $0.isLent } }
  /// The number of signals of the lent queue's `kick`.
  public var kicks: Int { state.withLock { $0.kicks } }

  public func wake() {
    let runs = state.withLock { state in
      if state.isLent { state.kicks += 1 }
      return !state.isLent && !state.isStopped
    }
    if runs { handler() }
  }

  /// Acts as a signal of the lent queue's `call`.
  public func call() { if !stopped { handler() } }

  public func setDoorbell(at address: UInt64?) { state.withLock { $0.doorbell = address } }

  /// The notifiers' descriptors are not open files: 1000 for `kick` and 2000 for `call`.
  public func lend() -> QueueNotifiers? {
    state.withLock { $0.isLent = true }
    return QueueNotifiers(
      kick: Notifier(descriptor: 1000, owner: self), call: Notifier(descriptor: 2000, owner: self))
  }

  public func reclaim() { state.withLock { $0.isLent = false } }
  public func stop() { state.withLock { $0.isStopped = true } }
}
