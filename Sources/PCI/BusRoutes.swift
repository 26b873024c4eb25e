import Hardware
import Synchronization

/// The map from bus numbers to buses: bus 0, and the links with the numbers that the guest writes into the ports.
///
/// Lock order: this object's lock, then a port's, then a bus's. None is held across a call into a device.
public final class BusRoutes: Sendable {
  private struct State {
    /// Sorted by address. If several ports claim a bus number, the first one gets it.
    var ports: [RootPort] = []
    /// The links by number, without the root bus.
    var buses = [Bus?](repeating: nil, count: 256)
  }

  public let root: Bus
  private let state = Mutex(State())

  public init(root: Bus) { self.root = root }

  /// The ports on bus 0, sorted by address.
  public var ports: [RootPort] { state.withLock { $0.ports } }

  /// Returns the bus with a number. Nil if no bus has the number, or if the bus is a link that is down.
  public func bus(_ number: UInt8) -> Bus? {
    number == root.number ? root : state.withLock { $0.buses[Int(number)] }
  }

  /// Returns the port directly above the bus with a number.
  public func port(above number: UInt8) -> RootPort? {
    guard let bus = bus(number), bus !== root else { return nil }
    return state.withLock { $0.ports.first { $0.bus === bus } }
  }

  func function(at id: RequesterID) -> Function? { bus(id.bus)?.function(at: id.deviceFunction) }

  public func add(_ port: RootPort) {
    state.withLock { state in
      state.ports.append(port)
      state.ports.sort { $0.function.requester.id < $1.function.requester.id }
    }
    refresh()
  }

  public func remove(_ port: RootPort) {
    state.withLock { $0.ports.removeAll { $0 === port } }
    refresh()
  }

  /// Rebuilds the map from the ports' registers.
  func refresh() {
    state.withLock { state in
      for number in state.buses.indices { state.buses[number] = nil }
      for port in state.ports {
        let header = port.header
        port.bus.renumber(header.secondaryBus)
        let number = Int(header.secondaryBus)
        if port.isLinkUp, header.leads(to: header.secondaryBus), state.buses[number] == nil {
          state.buses[number] = port.bus
        }
      }
    }
  }
}
