import Synchronization

/// A bus of a machine that runs, by the name that `bus=` takes.
struct LiveBus: Hashable, Sendable {
  let name: String
  let kind: DeviceBus
  /// Whether devices come and go while the machine runs.
  let isHotpluggable: Bool
}

/// The buses of a board: q35's, with QEMU's names, and one below each root port that has an id. None takes a device
/// later yet.
///
/// Lock order: its lock is a leaf.
final class LiveBuses: Sendable {
  private let buses = Mutex([
    LiveBus(name: "main-system-bus", kind: .system, isHotpluggable: false),
    LiveBus(name: "pcie.0", kind: .pci, isHotpluggable: false),
    LiveBus(name: "isa.0", kind: .isa, isHotpluggable: false),
  ])

  func named(_ name: String) -> LiveBus? { buses.withLock { $0.first { $0.name == name } } }

  /// The bus of a device that names none.
  func standard(for kind: DeviceBus) -> LiveBus? { buses.withLock { $0.first { $0.kind == kind } } }

  /// Adds a bus, or replaces the one of its name.
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
