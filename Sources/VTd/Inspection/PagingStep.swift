import Hardware

/// One paging entry that a walk reads (VT-d 9.7, 9.8).
public struct PagingStep: Hashable, Sendable {
  public enum Stage: Hashable, Sendable {
    case first
    case second
  }

  public let stage: Stage
  /// 1 for a page table, up to 5.
  public let level: Int
  /// The entry's address. For a first stage in nested translation the second stage translates it.
  public let address: UInt64
  /// For a first-stage entry in nested translation: the second stage's entries that translate its address.
  public internal(set) var below: [PagingStep] = []
  /// The same for the write that sets accessed and dirty bits.
  public internal(set) var belowUpdate: [PagingStep] = []
  /// The entry's physical address. Nil where the second stage blocks the read.
  public internal(set) var physicalAddress: UInt64?
  /// The entry in memory. Nil where it was not read.
  public internal(set) var entry: UInt64?
  /// The entry maps a page.
  public internal(set) var isLeaf = false
  /// Reserved bits that are set.
  public internal(set) var reservedBits: UInt64 = 0
  /// The accessed and dirty bits that a real walk for this request would set.
  public internal(set) var bitsToSet: UInt64 = 0

  init(_ stage: Stage, level: Int, address: UInt64) {
    self.stage = stage
    self.level = level
    self.address = address
  }

  /// The entry's index in its table, 0 to 511.
  public var index: Int { Int(address[bits: 3...11]) }

  /// First stage: P. Second stage: R or W.
  public var isPresent: Bool {
    guard let entry else { return false }
    return stage == .first ? entry & FirstStageEntry.present != 0 : entry & 3 != 0
  }

  /// The table or page that the entry points to.
  public var output: UInt64? {
    guard isPresent, let entry else { return nil }
    let address = entry & WalkRules.addressBits
    return isLeaf ? address & ~UInt64.lowBits(12 + 9 * (level - 1)) : address
  }

  /// Mnemonics of `bitsToSet`.
  public var marks: [String] {
    let names: [(Int, String)] = stage == .first ? [(5, "A"), (6, "D"), (10, "EA")] : [(8, "A"), (9, "D")]
    return names.filter { bitsToSet[bit: $0.0] }.map(\.1)
  }

  /// Mnemonics of the flags that are set.
  public var flags: [String] {
    guard let entry else { return [] }
    let names: [(Int, String)] =
      stage == .first
      ? [(0, "P"), (1, "R/W"), (2, "U/S"), (5, "A"), (6, "D"), (7, "PS"), (10, "EA"), (63, "XD")]
      : [(0, "R"), (1, "W"), (7, "PS"), (8, "A"), (9, "D"), (11, "SNP"), (62, "TM")]
    return names.filter { entry[bit: $0.0] && ($0.0 != 7 || level > 1) && ($0.1 != "D" || isLeaf) }.map(\.1)
  }
}
