// What holds for every walk of a unit: reserved bits of paging entries by level (VT-d 9.7, 9.8), and
// the places of fields. Computed once from the capabilities.

/// Bits of first-stage paging entries (VT-d 9.7).
enum FirstStageEntry {
  static let present: UInt64 = 1 << 0  // P
  static let writable: UInt64 = 1 << 1  // R/W
  static let user: UInt64 = 1 << 2  // U/S
  static let accessed: UInt64 = 1 << 5  // A
  static let dirty: UInt64 = 1 << 6  // D
  static let pageSize: UInt64 = 1 << 7  // PS
  static let extendedAccessed: UInt64 = 1 << 10  // EA
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
  /// A table that another processor keeps changing under an update of accessed and dirty bits is
  /// walked anew no more often than this.
  static let attempts = 16

  /// Address bits of an entry.
  static let addressBits: UInt64 = 0x000f_ffff_ffff_f000

  /// The interrupt address range, 0xFEEx_xxxx (VT-d 3.15).
  static func isInterruptAddress(_ address: UInt64) -> Bool { address >> 20 == 0xfee }

  let maximumGuestAddressWidth: Int
  let hostAddressWidth: Int
  /// PWSNP means something: walks with it clear may not update entries.
  let pageWalkSnoopMatters: Bool

  /// Reserved bits indexed by level, 1 for page tables. In line: walks of all ports read them, and a
  /// shared array's reference count would be one cache line that all of them write.
  private typealias ReservedBits = InlineArray<6, UInt64>
  private let firstStageTable: ReservedBits
  private let firstStageLeaf: ReservedBits
  private let secondStageTable: ReservedBits
  private let secondStageLeaf: ReservedBits

  init(_ capabilities: Capabilities, staleTranslationMethod: Bool) {
    maximumGuestAddressWidth = capabilities.maximumGuestAddressWidth
    hostAddressWidth = capabilities.hostAddressWidth
    pageWalkSnoopMatters = capabilities.scalablePageWalkCoherency
    let beyond = capabilities.addressBitsBeyondHost

    // Bits 62:52 are ignored, and 63 (XD) is: there are no execute requests.
    firstStageTable = [0, 0, beyond, beyond, beyond | FirstStageEntry.pageSize, beyond | FirstStageEntry.pageSize]
    // Below a large page's address only bit 12 (PAT) means something.
    let gigabyte = beyond | 0x3fff_e000 | (capabilities.firstStageGigabytePages ? 0 : FirstStageEntry.pageSize)
    firstStageLeaf = [0, beyond, beyond | 0x001f_e000, gigabyte, 0, 0]

    // Bits 61:52 and 63 are ignored.
    let ssCommon =
      beyond
      | (staleTranslationMethod && capabilities.deviceTLB ? 0 : SecondStageEntry.transientMapping)
    let ssTable = beyond | SecondStageEntry.transientMapping | SecondStageEntry.snoop
    let ssSnoop = capabilities.scalableMode || capabilities.snoopControl ? 0 : SecondStageEntry.snoop
    secondStageTable = [
      0, 0, ssTable, ssTable, ssTable | SecondStageEntry.pageSize, ssTable | SecondStageEntry.pageSize,
    ]
    secondStageLeaf = [
      0, ssCommon | ssSnoop, ssCommon | ssSnoop | 0x001f_f000, ssCommon | ssSnoop | 0x3fff_f000, 0, 0,
    ]
  }

  /// Bits that must be zero in a first-stage entry at `level`, 1 to 5.
  @inline(__always)
  func firstStageReserved(level: Int, isLeaf: Bool) -> UInt64 {
    isLeaf ? firstStageLeaf[level] : firstStageTable[level]
  }

  @inline(__always)
  func secondStageReserved(level: Int, isLeaf: Bool) -> UInt64 {
    isLeaf ? secondStageLeaf[level] : secondStageTable[level]
  }

  func exceedsHost(_ address: UInt64) -> Bool { address >> UInt64(hostAddressWidth) != 0 }
}

/// A page that a walk found.
struct Mapping: Hashable, Sendable {
  /// Of the page's first byte.
  var output: UInt64
  /// Size of the page: 12, 21 or 30.
  var shift: Int
  /// What a cached copy of it lets through without another walk.
  var readable: Bool
  var writable: Bool

  var offsetMask: UInt64 { UInt64.lowBits(shift) }

  /// The physical address that `input`, an address within the page, stands for.
  func address(of input: UInt64) -> UInt64 { output | input & offsetMask }
}
