import Hardware

// The reads of the tables for one source, from the root table to the path of its requests (VT-d 3.4).

/// The context entry of a source.
enum SourceContext: Sendable {
  /// A legacy context entry and the path that it defines.
  case legacy(ContextEntry, TranslationPath)
  case scalable(ScalableContextEntry)
}

/// The path of a source's requests, with the PASID-table entry that defines it in scalable mode.
struct ResolvedPath {
  let path: TranslationPath
  let pasidEntry: PASIDEntry?
}

/// Reads the entries of one source. Remembers FPD of the entries even when a read throws.
///
/// Translation, ATS and host bindings resolve a request in two steps: `context(for:pasid:)`, then
/// `path(of:isPrivileged:in:)`. A cached context entry replaces the first step.
struct SourceLookup {
  let mode: TranslationMode
  let source: RequesterID
  let capabilities: Capabilities
  let memory: any PhysicalMemory
  /// FPD of the entries read so far.
  var faultProcessingDisabled = false
  /// The numbers of reads, for the counters.
  private(set) var contextReads: UInt64 = 0
  private(set) var pasidReads: UInt64 = 0

  init(_ mode: TranslationMode, source: RequesterID, capabilities: Capabilities, memory: any PhysicalMemory) {
    self.mode = mode
    self.source = source
    self.capabilities = capabilities
    self.memory = memory
  }

  // MARK: The path of a request

  /// Reads the context entry, and checks that it admits a request of this type.
  /// - Parameter pasid: the PASID that the request carries, or nil.
  mutating func context(for type: RequestType, pasid: UInt32?) throws(FaultReason) -> SourceContext {
    switch mode.tableMode {
    case .invalid: throw .translationTableModeInvalid
    case .legacy where type == .pageRequest: throw .pageRequestInLegacyMode
    case .legacy where pasid != nil: throw .pasidInLegacyMode
    case .legacy:
      let entry = try legacyContext()
      let path = try TranslationPath(entry, capabilities)
      if type != .untranslated, entry.translationType != .deviceTLB { throw .translationTypeBlocks }
      return .legacy(entry, path)
    case .scalable:
      let entry = try scalableContext()
      if type != .untranslated, !entry.deviceTLBEnable { throw .deviceTLBNotEnabled }
      if type == .pageRequest, !entry.pageRequestEnable { throw .pageRequestNotEnabled }
      if pasid != nil, !entry.pasidEnable { throw .pasidNotEnabled }
      return .scalable(entry)
    }
  }

  /// Reads the PASID-table entry in scalable mode, and returns the path of the request.
  /// - Parameters:
  ///   - pasid: the PASID that the request carries, or nil.
  ///   - isPrivileged: Privileged Mode Requested of a request with a PASID.
  mutating func path(
    of pasid: UInt32?, isPrivileged: Bool, in context: SourceContext
  ) throws(FaultReason) -> ResolvedPath {
    switch context {
    case .legacy(_, let path): return ResolvedPath(path: path, pasidEntry: nil)
    case .scalable(let context):
      let number = pasid ?? context.ridPASID(capabilities)
      let entry = try pasidEntry(number, isFromRequest: pasid != nil, context: context)
      let isSupervisor = pasid == nil ? context.ridPrivilege(capabilities) : isPrivileged
      return ResolvedPath(
        path: try TranslationPath(entry, pasid: number, isSupervisor: isSupervisor, capabilities), pasidEntry: entry)
    }
  }

  // MARK: Entries

  private func load128(_ address: UInt64) -> (low: UInt64, high: UInt64)? {
    guard let low = memory.loadUInt64(at: address), let high = memory.loadUInt64(at: address &+ 8) else { return nil }
    return (low, high)
  }

  /// Reads a legacy root entry and context entry.
  mutating func legacyContext() throws(FaultReason) -> ContextEntry {
    contextReads &+= 1
    guard let root = load128(mode.rootTable &+ UInt64(source.bus) * 16) else { throw .rootEntryAccess }
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

  /// Reads a scalable-mode root entry and context entry.
  mutating func scalableContext() throws(FaultReason) -> ScalableContextEntry {
    contextReads &+= 1
    guard let root = load128(mode.rootTable &+ UInt64(source.bus) * 16) else { throw .scalableRootEntryAccess }
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

  /// Reads a PASID directory entry and PASID-table entry.
  /// - Parameters:
  ///   - pasid: the PASID of the request, or the context entry's RID_PASID.
  ///   - isFromRequest: whether the request carries `pasid`. It selects the fault reason.
  mutating func pasidEntry(
    _ pasid: UInt32, isFromRequest: Bool, context: ScalableContextEntry
  ) throws(FaultReason) -> PASIDEntry {
    pasidReads &+= 1
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

extension RemappingUnit {
  /// Returns a lookup that reads the tables in memory, not the caches.
  func lookup(_ source: RequesterID, in mode: TranslationMode) -> SourceLookup {
    SourceLookup(mode, source: source, capabilities: capabilities, memory: memory)
  }
}
