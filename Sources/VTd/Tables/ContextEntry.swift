import Hardware

// Root entries and context entries (VT-d 9.1 to 9.4), legacy and scalable: the first two levels of the tables, indexed
// by the source-id of a request.

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
