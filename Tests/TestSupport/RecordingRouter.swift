import Hardware
import Synchronization

/// Interrupt routes that record each message and its requester.
public final class RecordingRouter: InterruptRouter {
  public struct Delivery: Hashable, Sendable {
    public let requester: RequesterID
    public let message: InterruptMessage
  }

  private let log = Mutex<[Delivery]>([])
  private let sets = Mutex(0)

  public init() {}

  /// How often a route was set to a message.
  public var setCount: Int { sets.withLock { $0 } }

  public var deliveries: [Delivery] { log.withLock { $0 } }
  public var messages: [InterruptMessage] { deliveries.map(\.message) }

  public func makeRoute(for requester: Requester) -> any InterruptRoute { Route(router: self, requester: requester) }

  private final class Route: InterruptRoute {
    private let message = Mutex<InterruptMessage?>(nil)
    private let router: RecordingRouter
    private let requester: Requester

    init(router: RecordingRouter, requester: Requester) {
      self.router = router
      self.requester = requester
    }

    func set(_ new: InterruptMessage?) {
      message.withLock { $0 = new }
      if new != nil { router.sets.withLock { $0 += 1 } }
    }

    func signal() {
      guard let message = message.withLock({ $0 }) else { return }
      router.log.withLock { $0.append(Delivery(requester: requester.id, message: message)) }
    }
  }
}

/// An interrupt line that records its level and how often the level changed.
public final class RecordingLine: InterruptLine {
  private let state = Mutex((asserted: false, changes: 0))

  public init() {}

  public var asserted: Bool { state.withLock { $0.asserted } }
  public var changes: Int { state.withLock { $0.changes } }

  public func set(_ asserted: Bool) {
    state.withLock { state in
      if state.asserted != asserted { state.changes += 1 }
      state.asserted = asserted
    }
  }
}
