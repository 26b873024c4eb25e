import Hardware

// The formats of context entries, legacy and scalable (VT-d 9.3, 9.4), and of PASID-table entries (VT-d 9.6).

/// A legacy context entry (VT-d 9.3).
struct ContextEntry: Hashable, Sendable {
  var low: UInt64
  var high: UInt64

  enum TranslationType: UInt64, Sendable {
    /// The second stage translates untranslated requests; other requests are blocked.
    case untranslatedOnly = 0
    /// Also admits translation requests and translated requests (ATS). Requires ECAP.DT.
    case deviceTLB = 1
    /// Requires ECAP.PT.
    case passThrough = 2
  }

  var isPresent: Bool { low[bit: 0] }  // P
  var faultProcessingDisabled: Bool { low[bit: 1] }  // FPD
  var translationType: TranslationType? { TranslationType(rawValue: low[bits: 2...3]) }  // TT
  var secondStagePointer: UInt64 { low & ~0xfff }  // SSPTPTR
  var addressWidthField: UInt64 { high[bits: 0...2] }  // AW
  var domain: UInt16 { UInt16(truncatingIfNeeded: high >> 8) }  // DID

  func hasReservedBits(_ capabilities: Capabilities) -> Bool {
    // Pass-through ignores SSPTPTR.
    let pointer = translationType == .passThrough ? 0 : capabilities.pointerBitsBeyondHost
    return low & (0xff0 | pointer) != 0 || high & 0xffff_ffff_ff00_0080 != 0
  }
}

/// A scalable-mode context entry (VT-d 9.4). Its second 128 bits are reserved.
struct ScalableContextEntry: Hashable, Sendable {
  var low: UInt64
  var high: UInt64

  var isPresent: Bool { low[bit: 0] }  // P
  var faultProcessingDisabled: Bool { low[bit: 1] }  // FPD
  var deviceTLBEnable: Bool { low[bit: 2] }  // DTE
  var pasidEnable: Bool { low[bit: 3] }  // PASIDE
  var pageRequestEnable: Bool { low[bit: 4] }  // PRE
  /// Number of PASID directory entries, 128 to 16384. Each covers 64 PASIDs.
  var directoryEntries: UInt32 { 1 << (UInt32(truncatingIfNeeded: low[bits: 9...11]) + 7) }  // PDTS
  var directoryPointer: UInt64 { low & ~0xfff }  // PASIDDIRPTR

  /// RID_PASID: the PASID whose entry translates requests without PASID. 0 on a unit without the field (ECAP.RPS
  /// clear).
  func ridPASID(_ capabilities: Capabilities) -> UInt32 {
    capabilities.ridPASID ? UInt32(truncatingIfNeeded: high[bits: 0...19]) : 0
  }

  /// RID_PRIV: requests without PASID have supervisor privilege. Always false on a unit without the field (ECAP.RPRIVS
  /// clear).
  func ridPrivilege(_ capabilities: Capabilities) -> Bool { capabilities.ridPrivilege && high[bit: 20] }

  func hasReservedBits(_ capabilities: Capabilities, upper: UInt64) -> Bool {
    // DTE without ECAP.DT, PASIDE without PASID, PRE without PRS and RID_PRIV without SRS are reserved.
    var reserved: UInt64 = 0x1f0 | capabilities.pointerBitsBeyondHost
    reserved[bit: 2] = !capabilities.deviceTLB
    reserved[bit: 3] = !capabilities.pasid
    reserved[bit: 4] = !capabilities.pageRequests
    var reservedHigh: UInt64 = ~0xf_ffff
    reservedHigh[bit: 20] = !capabilities.supervisorRequests
    return low & reserved != 0 || high & reservedHigh != 0 || upper != 0
  }
}

/// A scalable-mode PASID-table entry (VT-d 9.6): the first three of its eight 64-bit words. The others are reserved on
/// this unit.
struct PASIDEntry: Sendable {
  let words: (UInt64, UInt64, UInt64)

  /// PGTT: the stages that translate requests with this PASID.
  enum TranslationType: UInt64, Sendable {
    case firstStage = 1
    case secondStage = 2
    case nested = 3
    case passThrough = 4
  }

  var isPresent: Bool { words.0[bit: 0] }  // P
  var faultProcessingDisabled: Bool { words.0[bit: 1] }  // FPD
  var addressWidthField: UInt64 { words.0[bits: 2...4] }  // AW
  var translationType: TranslationType? { TranslationType(rawValue: words.0[bits: 6...8]) }  // PGTT
  var secondStageAccessedDirty: Bool { words.0[bit: 9] }  // SSADE
  var secondStagePointer: UInt64 { words.0 & ~0xfff }  // SSPTPTR
  var domain: UInt16 { UInt16(truncatingIfNeeded: words.1) }  // DID
  var pageWalkSnoop: Bool { words.1[bit: 23] }  // PWSNP
  var supervisorRequestEnable: Bool { words.2[bit: 0] }  // SRE
  var executeRequestEnable: Bool { words.2[bit: 1] }  // ERE
  var firstStagePagingMode: UInt64 { words.2[bits: 2...3] }  // FSPM
  var writeProtectEnable: Bool { words.2[bit: 4] }  // WPE
  var noExecuteEnable: Bool { words.2[bit: 5] }  // NXE
  var supervisorExecutionPrevention: Bool { words.2[bit: 6] }  // SMEP
  var extendedAccessedFlagEnable: Bool { words.2[bit: 7] }  // EAFE
  var firstStagePointer: UInt64 { words.2 & ~0xfff }  // FSPTPTR

  func hasReservedBits(_ capabilities: Capabilities) -> Bool {
    var first: UInt64 = 0xc20 | capabilities.pointerBitsBeyondHost
    first[bit: 9] = !capabilities.secondStageAccessedDirty
    // The unit ignores memory types (CD, EMTE, EMT, PWT, PCD, PAT): its DMA is coherent.
    var second: UInt64 = 0x007f_0000
    // The unit ignores PGSNP with and without snoop control: Linux before 5.18 sets it for VFIO in both cases.
    second[bit: 23] = !capabilities.scalablePageWalkCoherency
    // ERE, SMEP and NXE belong to execute requests (ECAP.ERS). NXE is accepted anyway: Linux 6.1 sets it in every
    // first-stage entry regardless of ECAP, and hardware accepts it.
    var third: UInt64 = 0xf00
    third[bit: 1] = !capabilities.executeRequests
    third[bit: 6] = !capabilities.executeRequests
    third[bit: 0] = !capabilities.supervisorRequests
    third[bit: 7] = !capabilities.extendedAccessedFlag
    // In nested translation FSPTPTR is a guest physical address, which the second stage checks.
    if translationType != .nested { third |= capabilities.pointerBitsBeyondHost }
    return words.0 & first != 0 || words.1 & second != 0 || words.2 & third != 0
  }
}
