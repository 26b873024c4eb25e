import Hardware
import PCI
import Synchronization
import VTd

/// A remapping unit with the functions behind it: their way to memory, and their interrupts' to the local APICs. Or
/// none, for the functions that no unit has.
struct RemappingScope: Sendable {
  let unit: RemappingUnit?
  let interrupts: InterruptDelivery
  let environment: PCIEnvironment
}

/// Which function is behind which unit. Chosen by place when a function is built; the scope of a unit does not change.
struct RemappingScopes: Sendable {
  /// Of the units, in the order given; then the one without.
  private let all: [RemappingScope]
  private let named: [PCIPlace: Int]
  private let others: Int
  private let ioapicIndex: Int

  /// - Parameters:
  ///   - make: builds a scope around a unit, or without one.
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

  /// By its own name, or by that of the port above it.
  private func index(of place: PCIPlace) -> Int { named[place] ?? place.port.flatMap { named[PCIPlace($0)] } ?? others }

  func scope(of place: PCIPlace) -> RemappingScope { all[index(of: place)] }

  /// Lets the units and what passes their remapping go of each other. The board goes.
  func end() { for scope in all { scope.interrupts.stopRemapping() } }

  /// The scope whose unit remaps the IOAPIC's interrupts.
  var ioapic: RemappingScope { all[ioapicIndex] }

  var units: [RemappingUnit] { all.compactMap(\.unit) }

  /// Which of `units` has a function; nil for none.
  /// - Parameter place: nil for one that is nowhere: no scope names it.
  func unitIndex(of place: PCIPlace?) -> Int? {
    let index = place.map(index) ?? others
    return index < all.count - 1 ? index : nil
  }
}
