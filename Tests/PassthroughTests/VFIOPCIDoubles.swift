import Hardware
import Synchronization
import TestSupport

@testable import Passthrough

/// Makes routes that record their message and whose eventfds are plain numbers.
final class EventRouter: InterruptRouter {
  let routes = Mutex<[Route]>([])

  final class Route: EventRoute {
    let number: Int32
    let message = Mutex<InterruptMessage?>(nil)
    init(_ number: Int32) { self.number = number }
    func set(_ new: InterruptMessage?) { message.withLock { $0 = new } }
    func signal() {}
    func event() -> Int32? { number }
  }

  func makeRoute(for requester: Requester) -> any InterruptRoute {
    routes.withLock { routes in
      routes.append(Route(Int32(500 + routes.count)))
      return routes[routes.count - 1]
    }
  }
}

extension RecordingDeviceMemory: DeviceMemory {}
