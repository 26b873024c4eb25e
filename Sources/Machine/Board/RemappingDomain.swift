import Hardware
import PCI
import Synchronization
import VTd

/// A remapping unit with the functions behind it: their way to memory, and their interrupts' to the local APICs. Or
/// none, for the functions that no unit has.
struct RemappingDomain: Sendable {
  let unit: RemappingUnit?
  let interrupts: InterruptDelivery
  let environment: PCIEnvironment
}

/// Which function is behind which unit. Chosen by address when a function is built; the addresses of a unit do not
/// change.
struct RemappingDomains: Sendable {
  /// Of the units, in the order given; then the one without.
  private let all: [RemappingDomain]
  private let named: [RequesterID: Int]
  private let others: Int
  private let ioapicIndex: Int

  /// - Parameters:
  ///   - make: builds a domain around a unit, or without one.
  init(
    _ placements: [UnitPlacement], make: (UnitPlacement?) throws(UnitOptionError) -> RemappingDomain
  ) throws(UnitOptionError) {
    var all: [RemappingDomain] = []
    for placement in placements { all.append(try make(placement)) }
    all.append(try make(nil))
    self.all = all
    var named: [RequesterID: Int] = [:]
    for (index, placement) in placements.enumerated() {
      for function in placement.functions { named[function] = index }
    }
    self.named = named
    others = placements.firstIndex(where: \.includesAll) ?? placements.count
    ioapicIndex = placements.firstIndex(where: \.hasIOAPIC) ?? placements.count
  }

  private func index(of address: RequesterID) -> Int { named[address] ?? others }

  func domain(of address: RequesterID) -> RemappingDomain { all[index(of: address)] }

  /// Lets the units and what passes their remapping go of each other. The board goes.
  func end() { for domain in all { domain.interrupts.stopRemapping() } }

  /// The domain whose unit remaps the IOAPIC's interrupts.
  var ioapic: RemappingDomain { all[ioapicIndex] }

  var units: [RemappingUnit] { all.compactMap(\.unit) }

  /// Which of `units` has an address; nil for none.
  func unitIndex(of address: RequesterID) -> Int? {
    let index = index(of: address)
    return index < all.count - 1 ? index : nil
  }
}
