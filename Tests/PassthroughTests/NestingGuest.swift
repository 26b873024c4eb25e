import Hardware
import Linux
import Testing
import VTdOracle

@testable import Passthrough
@testable import VTd

/// A guest's nesting unit with its bindings of the host's devices. The functions 00:03.0 and 00:04.0 share one
/// PASID-table entry, whose first stage is at 2 MiB, in domain 5. Translation is off at the start.
struct NestingGuest {
  static let sources = [
    RequesterID(bus: 0, device: 3, function: 0), RequesterID(bus: 0, device: 4, function: 0),
  ]

  let guest: Guest
  let tables: Guest.ScalableTables
  let bindings: HostBindings

  /// - Parameter context: Additional bits of the context entries.
  init(context: UInt64 = 0, _ change: (inout UnitOptions) -> Void = { _ in }) throws {
    guest = try Guest.firstStage {
      $0.cachingMode = true
      change(&$0)
    }
    tables = guest.scalableTables(
      source: Self.sources[0], words: Guest.pasidEntry(type: 1, firstStage: 0x20_0000))
    guest.store(guest.load(tables.context) | context, at: tables.context)
    for word: UInt64 in 0..<4 {
      guest.store(guest.load(tables.context + word * 8), at: tables.context + 0x100 + word * 8)
    }
    guest.enableQueue(wide: true, pages: 4)
    bindings = HostBindings(unit: guest.unit)
  }

  func enableTranslation() {
    guest.setRootTable(tables.root, scalable: true)
    guest.enableTranslation()
  }

  /// Invalidates the PASID-cache entry.
  /// - Returns: Whether the unit reached the wait descriptor behind it.
  func invalidateEntry() -> Bool { guest.submitAndWait([7 | 1 << 4 | 5 << 16, 0]) }

  /// Points the entry to another first stage and invalidates it.
  func setTable(_ root: UInt64) -> Bool {
    guest.store(root, at: tables.entry + 16)
    return invalidateEntry()
  }
}
