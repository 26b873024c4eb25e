import Hardware

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
