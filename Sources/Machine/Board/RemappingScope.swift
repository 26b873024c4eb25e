import Hardware
import PCI
import Synchronization
import VTd

/// The objects that the functions behind one remapping unit share: the unit, the delivery of their interrupts and their
/// environment. One more scope, without a unit, is for the functions that no unit translates for.
struct RemappingScope: Sendable {
  let unit: PlacedUnit?
  let interrupts: InterruptDelivery
  let environment: PCIEnvironment
}

/// The scopes of all units. A function's place determines its scope when the function is built; the scope of a unit
/// does not change.
struct RemappingScopes: Sendable {
  /// One for each unit, in the order given, then the scope without a unit.
  private let all: [RemappingScope]
  /// The index of the scope that names a place.
  private let named: [PCIPlace: Int]
  /// The index of the scope for functions that no unit names.
  private let others: Int
  private let ioapicIndex: Int

  /// - Parameter make: builds the scope of a unit, or the scope without a unit for nil.
  init(
    _ placements: [UnitPlacement], make: (UnitPlacement?) throws(UnitOptionError) -> RemappingScope
  ) throws(UnitOptionError) {
    var all: [RemappingScope] = []
    for placement in placements { all.append(try make(placement)) }
    all.append(try make(nil))
    self.all = all
    var named: [PCIPlace: Int] = [:]
    for (index, placement) in placements.enumerated() {
      for function in placement.functions { named[function] = index }
    }
    self.named = named
    others = placements.firstIndex(where: \.includesAll) ?? placements.count
    ioapicIndex = placements.firstIndex(where: \.hasIOAPIC) ?? placements.count
  }

  /// Finds the scope that names the place itself, else the scope that names the port above it.
  private func index(of place: PCIPlace) -> Int { named[place] ?? place.port.flatMap { named[PCIPlace($0)] } ?? others }

  func scope(of place: PCIPlace) -> RemappingScope { all[index(of: place)] }

  /// Breaks the reference cycles between the units and the interrupt deliveries, when the board is destroyed.
  func end() { for scope in all { scope.interrupts.stopRemapping() } }

  /// The scope whose unit remaps the IOAPIC's interrupts.
  var ioapic: RemappingScope { all[ioapicIndex] }

  var units: [PlacedUnit] { all.compactMap(\.unit) }

  /// Returns the index in `units` of the unit that translates for a function; nil if none does.
  /// - Parameter place: nil for an address without a place on the board, which no scope names.
  func unitIndex(of place: PCIPlace?) -> Int? {
    let index = place.map(index) ?? others
    return index < all.count - 1 ? index : nil
  }
}
