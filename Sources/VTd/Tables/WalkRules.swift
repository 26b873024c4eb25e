// Fields of paging entries and their reserved bits by level (VT-d 9.7, 9.8), computed once from the capabilities.

/// Bits of first-stage paging entries (VT-d 9.7).
enum FirstStageEntry {
  static let present: UInt64 = 1 << 0  // P
  static let writable: UInt64 = 1 << 1  // R/W
  static let user: UInt64 = 1 << 2  // U/S
  static let accessed: UInt64 = 1 << 5  // A
  static let dirty: UInt64 = 1 << 6  // D
  static let pageSize: UInt64 = 1 << 7  // PS
  static let extendedAccessed: UInt64 = 1 << 10  // EA
  static let executeDisable: UInt64 = 1 << 63  // XD
}

/// Bits of second-stage paging entries (VT-d 9.8).
enum SecondStageEntry {
  static let readable: UInt64 = 1 << 0  // R
  static let writable: UInt64 = 1 << 1  // W
  static let pageSize: UInt64 = 1 << 7  // PS
  static let accessed: UInt64 = 1 << 8  // A
  static let dirty: UInt64 = 1 << 9  // D
  static let snoop: UInt64 = 1 << 11  // SNP
  static let transientMapping: UInt64 = 1 << 62  // TM
}

struct WalkRules: Sendable {
  /// Limit of attempts of one walk. A walk starts again when another processor changes an entry during the update of
  /// its accessed and dirty bits.
  static let attempts = 16

  /// Address bits of an entry.
  static let addressBits: UInt64 = 0x000f_ffff_ffff_f000

  /// The interrupt address range, 0xFEEx_xxxx (VT-d 3.15).
  @inline(__always)
  static var interruptAddresses: ClosedRange<UInt64> { 0xfee0_0000...0xfeef_ffff }

  @inline(__always)
  static func isInterruptAddress(_ address: UInt64) -> Bool { address >> 20 == 0xfee }

  let maximumGuestAddressWidth: Int
  let hostAddressWidth: Int
  /// Whether the unit offers PWSNP. If so, walks with PWSNP clear must not update entries.
  let pageWalkSnoopMatters: Bool

  // Reserved bits of every entry: bits 51:HAW, and fields that the unit does not offer. They are small, because every
  // walk copies them.
  private let firstStage: UInt64
  private let firstStageGigabytePage: UInt64
  private let secondStageTable: UInt64
  private let secondStageLeaf: UInt64

  init(_ capabilities: Capabilities, ignoresTransientMapping: Bool) {
    maximumGuestAddressWidth = capabilities.maximumGuestAddressWidth
    hostAddressWidth = capabilities.hostAddressWidth
    pageWalkSnoopMatters = capabilities.scalablePageWalkCoherency
    let beyond = capabilities.addressBitsBeyondHost

    // Bits 62:52 are ignored. Bit 63 (XD) applies only to requests to execute.
    firstStage = beyond
    firstStageGigabytePage = capabilities.firstStageGigabytePages ? 0 : FirstStageEntry.pageSize

    // Bits 61:52 and 63 are ignored.
    secondStageTable = beyond | SecondStageEntry.transientMapping | SecondStageEntry.snoop
    secondStageLeaf =
      beyond
      | (ignoresTransientMapping && capabilities.deviceTLB ? 0 : SecondStageEntry.transientMapping)
      | (capabilities.scalableMode || capabilities.snoopControl ? 0 : SecondStageEntry.snoop)
  }

  /// Bits that must be zero in a first-stage entry at `level`, 1 to 5.
  @inline(__always)
  func firstStageReserved(level: Int, isLeaf: Bool) -> UInt64 {
    // Of the bits from 12 up to the address of a large page, only bit 12 (PAT) is not reserved.
    switch (isLeaf, level) {
    case (true, 1): firstStage
    case (true, 2): firstStage | 0x001f_e000
    case (true, _): firstStage | 0x3fff_e000 | firstStageGigabytePage
    case (false, ..<4): firstStage
    case (false, _): firstStage | FirstStageEntry.pageSize
    }
  }

  /// Bits that must be zero in a second-stage entry at `level`, 1 to 5.
  @inline(__always)
  func secondStageReserved(level: Int, isLeaf: Bool) -> UInt64 {
    switch (isLeaf, level) {
    case (true, 1): secondStageLeaf
    case (true, 2): secondStageLeaf | 0x001f_f000
    case (true, _): secondStageLeaf | 0x3fff_f000
    case (false, ..<4): secondStageTable
    case (false, _): secondStageTable | SecondStageEntry.pageSize
    }
  }

  func exceedsHost(_ address: UInt64) -> Bool { address >> UInt64(hostAddressWidth) != 0 }
}

/// The page that a walk found.
struct Mapping: Hashable, Sendable {
  /// Physical address of the page's first byte.
  var output: UInt64
  /// Log2 of the page's size: 12, 21 or 30.
  var shift: Int
  /// The accesses that a cached copy of the page grants without another walk.
  var readable: Bool
  var writable: Bool

  @inline(__always)
  var offsetMask: UInt64 { 1 &<< UInt64(truncatingIfNeeded: shift) &- 1 }

  /// Returns the physical address of `input`, an address within the page.
  @inline(__always)
  func address(of input: UInt64) -> UInt64 { output | input & offsetMask }
}
