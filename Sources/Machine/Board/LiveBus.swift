import Synchronization

/// A bus of a running machine.
struct LiveBus: Hashable, Sendable {
  /// The value of `bus=` that names the bus.
  let name: String
  let type: DeviceBus
  /// Whether devices can be added and removed while the machine runs.
  let isHotpluggable: Bool
}

/// The buses of a board: those of q35, with QEMU's names, and the bus below each root port with an id. The buses of q35
/// accept no device while the machine runs.
///
/// Lock order: code that holds its lock takes no other lock.
final class LiveBuses: Sendable {
  private let buses = Mutex([
    LiveBus(name: "main-system-bus", type: .system, isHotpluggable: false),
    LiveBus(name: "pcie.0", type: .pci, isHotpluggable: false),
    LiveBus(name: "isa.0", type: .isa, isHotpluggable: false),
  ])

  func named(_ name: String) -> LiveBus? { buses.withLock { $0.first { $0.name == name } } }

  /// Returns the default bus for devices of a bus type.
  func standard(for type: DeviceBus) -> LiveBus? { buses.withLock { $0.first { $0.type == type } } }

  /// Adds a bus, or replaces the bus with the same name.
  func set(_ bus: LiveBus) {
    buses.withLock { buses in
      if let index = buses.firstIndex(where: { $0.name == bus.name }) {
        buses[index] = bus
      } else {
        buses.append(bus)
      }
    }
  }

  func remove(_ name: String) { buses.withLock { $0.removeAll { $0.name == name } } }
}
