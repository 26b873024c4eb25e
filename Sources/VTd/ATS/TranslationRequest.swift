import Hardware

// Table reads for translation requests, translated requests and page requests (VT-d 4.1, 4.2, 7.1.3, 7.4), and the
// answers to the fault conditions that they meet. The unit reads the tables for each request: the function caches the
// answer.

extension FaultReason {
  /// The answer to a translation request that meets this condition (7.1.3).
  enum TranslationAnswer: Sendable {
    /// Success without any access, and no fault: the function may make a page request.
    case noAccess
    /// Success without any access, and a fault: a page request cannot resolve the condition.
    case noAccessAndFault
    case unsupportedRequest
    case completerAbort
  }

  var translationAnswer: TranslationAnswer {
    switch self {
    case .writePermission, .readPermission, .firstStageEntryNotPresent, .firstStageRootReadPermission,
      .firstStageEntryReadPermission, .firstStageEntryWritePermission, .scalableSecondStageNotPresent,
      .userPrivilege, .executePermission, .scalableWritePermission, .scalableReadPermission,
      .executeRequestNotEnabled, .supervisorRequestNotEnabled:
      .noAccess
    case .addressBeyondWidth, .addressNotCanonical, .scalableAddressBeyondWidth, .firstStageOutputBeyondWidth,
      .interruptAddress, .scalableInterruptAddress:
      .noAccessAndFault
    case .translationTableModeInvalid, .pasidInLegacyMode, .pageRequestInLegacyMode, .rootEntryNotPresent,
      .contextEntryNotPresent, .translationTypeBlocks, .scalableRootEntryNotPresent, .scalableContextEntryNotPresent,
      .deviceTLBNotEnabled, .pasidNotEnabled, .pasidBeyondDirectory, .pageRequestNotEnabled,
      .ridPASIDBeyondDirectory, .pasidDirectoryEntryNotPresent, .pasidEntryNotPresent:
      .unsupportedRequest
    default: .completerAbort
    }
  }
}

/// Reads the unit's tables for one request.
struct RequestLookup {
  let rules: WalkRules
  private var source: SourceLookup

  init(
    _ mode: TranslationMode, source: RequesterID, capabilities: Capabilities, rules: WalkRules,
    memory: any PhysicalMemory
  ) {
    self.rules = rules
    self.source = SourceLookup(mode, source: source, capabilities: capabilities, memory: memory)
  }

  private var mode: TranslationMode { source.mode }
  private var capabilities: Capabilities { source.capabilities }
  private var memory: any PhysicalMemory { source.memory }

  /// FPD of the entries read so far.
  var faultProcessingDisabled: Bool { source.faultProcessingDisabled }

  /// Answers a translation request.
  /// - Throws: the fault condition that the request meets.
  mutating func translate(
    _ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?
  ) throws(FaultReason) -> DeviceTranslation {
    let isPrivileged = prefix?.isPrivileged ?? false
    let context = try source.context(for: .translationRequest, pasid: prefix?.pasid)
    let path = try source.path(of: prefix?.pasid, isPrivileged: isPrivileged, in: context).path
    if isPrivileged, !capabilities.supervisorRequests { return .noAccess(isPrivileged: true) }
    if WalkRules.isInterruptAddress(address) { throw mode.interruptAddressFault }
    let writes = !noWrite || !capabilities.noWriteFlag
    let found: (mapping: Mapping, executable: Bool)
    switch path {
    case .unknown: throw .pasidEntryInvalid
    case .passThrough:
      guard !rules.exceedsHost(address) else { throw mode.addressWidthFault }
      let page = Mapping(output: address & ~0xfff, shift: 12, readable: true, writable: writes)
      found = (page, executes(prefix))
    case .first(let table, _):
      found = (
        try walk(writes: writes) { (access) throws(FaultReason) in
          try table.walk(address, for: access, rules: rules, memory: memory)
        }, executes(address, table, prefix)
      )
    case .second(let table, _):
      let page = try walk(writes: writes) { (access) throws(FaultReason) in
        try table.walk(address, for: access, rules: rules, memory: memory)
      }
      found = (page, executes(prefix) && page.readable)
    }
    let output = found.mapping.address(of: address)
    if WalkRules.isInterruptAddress(output) { throw mode.interruptAddressFault }
    // Of a page that overlaps the interrupt address range, the answer covers only 4 KiB.
    var shift = found.mapping.shift
    let mask = found.mapping.offsetMask
    let range = UInt64(0xfee0_0000)...0xfeef_ffff
    if range.overlaps(address & ~mask...address | mask) || range.overlaps(output & ~mask...output | mask) {
      shift = 12
    }
    return DeviceTranslation(
      address: output & ~UInt64.lowBits(shift), shift: shift, isReadable: found.mapping.readable,
      isWritable: found.mapping.writable, isExecutable: found.executable, isPrivileged: isPrivileged)
  }

  /// Finds all access rights of a page. Sets the dirty bit for a possible later write now (3.6.2), since the function
  /// will not request the translation again.
  private func walk(
    writes: Bool, _ attempt: (DMAAccess) throws(FaultReason) -> Mapping
  ) throws(FaultReason) -> Mapping {
    var granted: Mapping?
    var refused = FaultReason.scalableReadPermission
    do {
      granted = try attempt(.read)
      granted?.readable = true
    } catch {
      guard error.translationAnswer == .noAccess else { throw error }
      refused = error
    }
    granted?.writable = false
    guard writes else {
      guard let granted else { throw refused }
      return granted
    }
    do {
      var mapping = try attempt(.write)
      mapping.readable = granted != nil
      mapping.writable = true
      return mapping
    } catch {
      guard error.translationAnswer == .noAccess else { throw error }
      guard let granted else { throw refused }
      return granted
    }
  }

  private func executes(_ prefix: PASIDPrefix?) -> Bool { prefix?.executes ?? false && capabilities.executeRequests }

  private func executes(_ address: UInt64, _ table: FirstStageTable, _ prefix: PASIDPrefix?) -> Bool {
    guard executes(prefix) else { return false }
    do {
      try table.checkExecute(address, rules: rules, memory: memory)
      return true
    } catch {
      return false
    }
  }

  /// Checks a translated request.
  mutating func checkTranslated(_ address: UInt64) throws(FaultReason) {
    _ = try source.context(for: .translated, pasid: nil)
    if WalkRules.isInterruptAddress(address) { throw mode.interruptAddressFault }
  }

  /// Checks that a page request may enter the queue (7.4, SCT.8).
  /// - Returns: domain and PASID of the cached translations, or nil where the PASID has no valid entry.
  mutating func checkPageRequest(_ prefix: PASIDPrefix?) throws(FaultReason) -> (domain: UInt16, pasid: UInt32)? {
    guard case .scalable(let context) = try source.context(for: .pageRequest, pasid: prefix?.pasid) else {
      throw .pageRequestInLegacyMode
    }
    let pasid = prefix?.pasid ?? context.ridPASID(capabilities)
    if prefix != nil, pasid >> UInt32(capabilities.pasidWidth) != 0 { throw .pasidBeyondDirectory }
    // Software checks the PASID-table entry, not the unit.
    let entry = try? source.pasidEntry(pasid, isFromRequest: prefix != nil, context: context)
    return entry.map { ($0.domain, pasid) }
  }
}
