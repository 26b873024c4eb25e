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
  public let name: String
  private let handler: @Sendable () -> Void
  private let state = Mutex((doorbell: UInt64?.none, stopped: false))

  init(name: String, handler: @escaping @Sendable () -> Void) {
    self.name = name
    self.handler = handler
  }

  public var doorbell: UInt64? { state.withLock { $0.doorbell } }
  public var stopped: Bool { state.withLock { $0.stopped } }

  public func wake() { if !stopped { handler() } }
  public func setDoorbell(at address: UInt64?) { state.withLock { $0.doorbell = address } }
  public func stop() { state.withLock { $0.stopped = true } }
}
