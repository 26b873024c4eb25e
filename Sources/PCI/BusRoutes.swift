import Hardware
import Synchronization

/// Which bus a number leads to, from bus 0 by the numbers that the guest writes into its ports.
///
/// Lock order: its lock, then a port's, then a bus's. None is held across a call of a device.
public final class BusRoutes: Sendable {
  private struct State {
    /// In order of address: where two claim a number, the first has it.
    var ports: [RootPort] = []
    /// By number; the root's own is not in it.
    var buses = [Bus?](repeating: nil, count: 256)
  }

  public let root: Bus
  private let state = Mutex(State())

  public init(root: Bus) { self.root = root }

  /// The ports on bus 0, in order of address.
  public var ports: [RootPort] { state.withLock { $0.ports } }

  /// - Returns: nil where no bus has the number, or the one that has it is in reset.
  public func bus(_ number: UInt8) -> Bus? {
    number == root.number ? root : state.withLock { $0.buses[Int(number)] }
  }

  /// The port right above the bus with a number.
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

  /// Takes over what the ports' registers say now.
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
