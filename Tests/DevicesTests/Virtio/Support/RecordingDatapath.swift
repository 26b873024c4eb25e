import Devices
import Hardware
import Synchronization

/// A datapath that records its calls. A test decides when and where it stops.
final class RecordingDatapath: QueueDatapath {
  enum Call: Equatable {
    /// The descriptor is that of the call notifier.
    case start(at: UInt16, call: Int32?)
    case stop
    case setCall(Int32?)
  }

  private struct State {
    var calls: [Call] = []
    var queue: DatapathQueue?
    var refusal: DatapathRefusal?
    /// nil for a stop that the test completes.
    var outcome: DatapathStop = .stopped(0)
    var completion: (@Sendable (UInt16?) -> Void)?
  }

  private let state = Mutex(State())

  var calls: [Call] { state.withLock { $0.calls } }
  /// The queue as handed over last.
  var queue: DatapathQueue? { state.withLock { $0.queue } }

  /// Forgets the calls so far.
  func clear() { state.withLock { $0.calls = [] } }
  func refuse(_ refusal: DatapathRefusal?) { state.withLock { $0.refusal = refusal } }
  /// Sets the answer to later stops.
  func answerStops(_ outcome: DatapathStop) { state.withLock { $0.outcome = outcome } }

  /// Completes a pending stop.
  func complete(at index: UInt16?) { state.withLock { $0.completion.take() }?(index) }

  func start(_ queue: DatapathQueue) throws(DatapathRefusal) {
    let refusal = state.withLock { state in
      state.calls.append(.start(at: queue.startIndex, call: queue.call?.descriptor))
      state.queue = queue
      return state.refusal
    }
    if let refusal { throw refusal }
  }

  func stop(queue index: Int, _ completion: @escaping @Sendable (UInt16?) -> Void) -> DatapathStop {
    state.withLock { state in
      state.calls.append(.stop)
      if state.outcome == .pending { state.completion = completion }
      return state.outcome
    }
  }

  func setCall(_ call: Notifier?, queue index: Int) {
    state.withLock { $0.calls.append(.setCall(call?.descriptor)) }
  }
}

/// Routes with eventfds that are plain numbers, from 500 on in the order of the vectors.
final class EventRouter: InterruptRouter {
  private final class Route: EventRoute {
    let number: Int32
    init(_ number: Int32) { self.number = number }
    func set(_ message: InterruptMessage?) {}
    func signal() {}
    func event() -> Int32? { number }
  }

  private let count = Atomic<Int32>(0)

  func makeRoute(for requester: Requester) -> any InterruptRoute {
    Route(500 + count.wrappingAdd(1, ordering: .relaxed).oldValue)
  }
}
