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

/// Reads the entries of one source. Keeps FPD of each entry even when the read throws.
struct SourceLookup {
  let rootTable: UInt64
  let source: RequesterID
  let capabilities: Capabilities
  let memory: any PhysicalMemory
  /// FPD of the entries read so far.
  var faultProcessingDisabled = false

  init(rootTable: UInt64, source: RequesterID, capabilities: Capabilities, memory: any PhysicalMemory) {
    self.rootTable = rootTable
    self.source = source
    self.capabilities = capabilities
    self.memory = memory
  }

  private func load128(_ address: UInt64) -> (low: UInt64, high: UInt64)? {
    guard let low = memory.loadUInt64(at: address), let high = memory.loadUInt64(at: address &+ 8) else { return nil }
    return (low, high)
  }

  mutating func legacyContext() throws(FaultReason) -> ContextEntry {
    guard let root = load128(rootTable &+ UInt64(source.bus) * 16) else { throw .rootEntryAccess }
    guard root.low[bit: 0] else { throw .rootEntryNotPresent }
    guard root.low & (0xffe | capabilities.pointerBitsBeyondHost) == 0, root.high == 0 else {
      throw .rootEntryReserved
    }
    guard let bits = load128(root.low & ~0xfff &+ UInt64(source.deviceFunction) * 16) else {
      throw .contextEntryAccess
    }
    let entry = ContextEntry(low: bits.low, high: bits.high)
    faultProcessingDisabled = entry.faultProcessingDisabled
    guard entry.isPresent else { throw .contextEntryNotPresent }
    guard !entry.hasReservedBits(capabilities) else { throw .contextEntryReserved }
    return entry
  }

  mutating func scalableContext() throws(FaultReason) -> ScalableContextEntry {
    guard let root = load128(rootTable &+ UInt64(source.bus) * 16) else { throw .scalableRootEntryAccess }
    // The lower context table has devices 0 to 15, the upper one 16 to 31.
    let half = source.deviceFunction < 0x80 ? root.low : root.high
    guard half[bit: 0] else { throw .scalableRootEntryNotPresent }
    guard half & (0xffe | capabilities.pointerBitsBeyondHost) == 0 else { throw .scalableRootEntryReserved }
    let address = half & ~0xfff &+ UInt64(source.deviceFunction & 0x7f) * 32
    guard let bits = load128(address), let upper = load128(address &+ 16) else { throw .scalableContextEntryAccess }
    let entry = ScalableContextEntry(low: bits.low, high: bits.high)
    faultProcessingDisabled = entry.faultProcessingDisabled
    guard entry.isPresent else { throw .scalableContextEntryNotPresent }
    guard !entry.hasReservedBits(capabilities, upper: upper.low | upper.high) else {
      throw .scalableContextEntryReserved
    }
    return entry
  }

  /// - Parameters:
  ///   - pasid: the PASID of the request, or the context entry's RID_PASID.
  ///   - isFromRequest: whether the request carries `pasid`. It selects the fault reason.
  mutating func pasidEntry(
    _ pasid: UInt32, isFromRequest: Bool, context: ScalableContextEntry
  ) throws(FaultReason) -> PASIDEntry {
    faultProcessingDisabled = context.faultProcessingDisabled
    // A PASID wider than ECAP.PSS is an error. The specification has no separate code for it.
    if isFromRequest, pasid >> UInt32(capabilities.pasidWidth) != 0 { throw .pasidBeyondDirectory }
    guard pasid >> 6 < context.directoryEntries else {
      throw isFromRequest ? .pasidBeyondDirectory : .ridPASIDBeyondDirectory
    }
    guard let directory = memory.loadUInt64(at: context.directoryPointer &+ UInt64(pasid >> 6) * 8) else {
      throw .pasidDirectoryEntryAccess
    }
    faultProcessingDisabled = faultProcessingDisabled || directory[bit: 1]
    guard directory[bit: 0] else { throw .pasidDirectoryEntryNotPresent }
    guard directory & (0xffc | capabilities.pointerBitsBeyondHost) == 0 else { throw .pasidDirectoryEntryReserved }
    let address = directory & ~0xfff &+ UInt64(pasid & 0x3f) * 64
    guard let first = load128(address), let second = load128(address &+ 16), let third = load128(address &+ 32),
      let fourth = load128(address &+ 48)
    else { throw .pasidEntryAccess }
    let entry = PASIDEntry(words: (first.low, first.high, second.low))
    faultProcessingDisabled = faultProcessingDisabled || entry.faultProcessingDisabled
    guard entry.isPresent else { throw .pasidEntryNotPresent }
    let unused = second.high | third.low | third.high | fourth.low | fourth.high
    guard !entry.hasReservedBits(capabilities), unused == 0 else { throw .pasidEntryReserved }
    return entry
  }
}
