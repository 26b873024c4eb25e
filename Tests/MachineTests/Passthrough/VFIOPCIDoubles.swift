import Hardware
import Synchronization

@testable import Machine

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

/// Records which memory of devices the CPUs have mapped.
final class RecordingDeviceMemory: DeviceMemory {
  struct Area: Hashable, Sendable {
    let address: UInt64
    let size: UInt64
  }
  private let areas = Mutex<Set<Area>>([])
  var mapped: Set<Area> { areas.withLock { $0 } }

  final class Slot: Sendable {
    let owner: RecordingDeviceMemory
    let area: Area
    init(_ owner: RecordingDeviceMemory, _ area: Area) {
      self.owner = owner
      self.area = area
      owner.areas.withLock { _ = $0.insert(area) }
    }
    deinit { owner.areas.withLock { _ = $0.remove(area) } }
  }

  func map(_ address: UInt64, size: UInt64, hostAddress: UInt64) -> (any AnyObject & Sendable)? {
    Slot(self, Area(address: address, size: size))
  }
}
