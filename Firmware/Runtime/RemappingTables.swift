/// The tables that software writes for a VT-d unit: VT-d 4.1, chapter 9. These support only bus 0, and in scalable mode
/// only devices 0 to 15 and PASIDs below 64.

/// Paging tables of 4 levels, of either stage. The stages differ only in their bits.
struct PagingTables {
  /// The bits of an entry that points to a table.
  enum Stage: UInt64 {
    /// Present, writable, user.
    case first = 0x7
    /// Readable, writable.
    case second = 0x3
  }

  /// First stage.
  static let present: UInt64 = 1 << 0
  static let writable: UInt64 = 1 << 1
  static let user: UInt64 = 1 << 2
  static let accessed: UInt64 = 1 << 5
  static let dirty: UInt64 = 1 << 6
  /// Second stage.
  static let readable: UInt64 = 1 << 0
  static let secondAccessed: UInt64 = 1 << 8
  static let secondDirty: UInt64 = 1 << 9
  /// A bit of both stages. `writable` is also bit 1 in both.
  static let large: UInt64 = 1 << 7
  static let addressBits: UInt64 = 0x000f_ffff_ffff_f000

  let root: UInt64
  let stage: Stage

  init(_ stage: Stage) {
    root = Pages.take()
    self.stage = stage
  }

  /// Returns the address of the entry of a level (1: page table), and creates the tables above it.
  func entry(_ address: UInt64, level: UInt64) -> UInt64 {
    var table = root
    var current: UInt64 = 4
    while true {
      let place = table + (address >> (12 + 9 * (current - 1)) & 0x1ff) * 8
      if current == level { return place }
      if load64(place) == 0 { store64(place, Pages.take() | stage.rawValue) }
      table = load64(place) & Self.addressBits
      current -= 1
    }
  }

  /// - Parameter bits: the bits of the leaf, without its size.
  func map(_ address: UInt64, to physical: UInt64, level: UInt64 = 1, _ bits: UInt64) {
    store64(entry(address, level: level), physical | bits | (level > 1 ? Self.large : 0))
  }
}

/// The root and context tables of one function.
struct SourceTables {
  static let domain: UInt64 = 0x2a
  /// The PASID for requests without PASID: the value of RID_PASID, if the unit has this field.
  static var pasid: UInt64 { RemappingUnit.offers(RemappingUnit.ridPASID) ? 3 : 0 }
  static let width48: UInt64 = 2

  let root: UInt64
  private let context: UInt64
  private let source: UInt64

  /// - Parameter source: a source-id on bus 0.
  init(source: UInt64) {
    self.init(root: Pages.take(), context: Pages.take(), source: source)
    store64(root, context | 1)
  }

  private init(root: UInt64, context: UInt64, source: UInt64) {
    self.root = root
    self.context = context
    self.source = source
  }

  /// Returns the entries of the same tables for another function.
  func of(source: UInt64) -> SourceTables { SourceTables(root: root, context: context, source: source) }

  // MARK: Legacy mode

  var contextEntry: UInt64 { context + (source & 0xff) * 16 }

  /// - Parameter type: 0 second stage, 2 pass-through.
  func setLegacy(type: UInt64, table: UInt64, domain: UInt64 = domain) {
    store64(contextEntry + 8, domain << 8 | Self.width48)
    store64(contextEntry, table | type << 2 | 1)
  }

  // MARK: Scalable mode

  var scalableContextEntry: UInt64 { context + (source & 0x7f) * 32 }

  /// Creates a PASID directory and table.
  /// - Returns: the address of the function's PASID-table entry, all zeros.
  func makeScalable() -> UInt64 {
    let directory = Pages.take()
    let table = Pages.take()
    store64(directory, table | 1)
    store64(scalableContextEntry + 8, Self.pasid)
    store64(scalableContextEntry, directory | 1)
    return table + Self.pasid * 64
  }

  /// Returns the entry's second word, with PWSNP if the unit offers it. Such a unit sets A and D only with PWSNP.
  private static func second(_ domain: UInt64) -> UInt64 {
    domain | (RemappingUnit.offers(RemappingUnit.pageWalkCoherency) ? 1 << 23 : 0)
  }

  static func setFirstStage(_ entry: UInt64, table: UInt64, domain: UInt64 = domain) {
    store64(entry + 8, second(domain))
    store64(entry + 16, table)
    store64(entry, 1 << 6 | 1)
  }

  static func setSecondStage(_ entry: UInt64, table: UInt64, domain: UInt64 = domain) {
    store64(entry + 8, second(domain))
    store64(entry + 16, 0)
    store64(entry, table | 2 << 6 | width48 << 2 | 1)
  }

  /// - Parameters:
  ///   - table: the first stage's table, at an address that the second stage maps.
  ///   - accessedDirty: walks also set A and D of the second stage (SSADE).
  ///   - width: AW of the second stage: 2 for 4 levels, 1 for 3.
  static func setNested(
    _ entry: UInt64, table: UInt64, over second: UInt64, accessedDirty: Bool = false, width: UInt64 = width48,
    domain: UInt64 = domain
  ) {
    store64(entry + 8, Self.second(domain))
    store64(entry + 16, table)
    store64(entry, second | (accessedDirty ? 1 << 9 : 0) | 3 << 6 | width << 2 | 1)
  }

  static func setPassThrough(_ entry: UInt64, domain: UInt64 = domain) {
    store64(entry + 8, second(domain))
    store64(entry + 16, 0)
    store64(entry, 4 << 6 | 1)
  }
}
