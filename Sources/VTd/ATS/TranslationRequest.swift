import Hardware

// Translation requests (VT-d 4.1.1), and the unit's answer for each fault condition (7.1.3). The unit reads the tables
// for each request and caches nothing, because the function caches the answer.

extension FaultReason {
  /// The answer to a translation request that meets this condition (7.1.3).
  enum TranslationAnswer: Sendable {
    /// The completion grants no access, and no fault is recorded: the function may make a page request.
    case noAccess
    /// The completion grants no access, and a fault is recorded: a page request cannot resolve the condition.
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

extension SourceLookup {
  /// Answers a translation request.
  /// - Throws: the fault condition that the request meets.
  mutating func translate(
    _ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?, rules: WalkRules
  ) throws(FaultReason) -> DeviceTranslation {
    let isPrivileged = prefix?.isPrivileged ?? false
    let context = try context(for: .translationRequest, pasid: prefix?.pasid)
    let path = try self.path(of: prefix?.pasid, isPrivileged: isPrivileged, in: context).path
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
        }, executes(address, table, prefix, rules)
      )
    case .second(let table, _):
      let page = try walk(writes: writes) { (access) throws(FaultReason) in
        try table.walk(address, for: access, rules: rules, memory: memory)
      }
      found = (page, executes(prefix) && page.readable)
    }
    let output = found.mapping.address(of: address)
    if WalkRules.isInterruptAddress(output) { throw mode.interruptAddressFault }
    // If the page overlaps the interrupt address range, the answer covers only 4 KiB of the page.
    var shift = found.mapping.shift
    let mask = found.mapping.offsetMask
    let interrupts = WalkRules.interruptAddresses
    if interrupts.overlaps(address & ~mask...address | mask) || interrupts.overlaps(output & ~mask...output | mask) {
      shift = 12
    }
    return DeviceTranslation(
      address: output & ~UInt64.lowBits(shift), shift: shift, isReadable: found.mapping.readable,
      isWritable: found.mapping.writable, isExecutable: found.executable, isPrivileged: isPrivileged)
  }

  /// Finds all access rights of a page. If `writes`, sets the dirty bit already now (3.6.2), because the function does
  /// not request the translation again before it writes.
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

  private func executes(
    _ address: UInt64, _ table: FirstStageTable, _ prefix: PASIDPrefix?, _ rules: WalkRules
  ) -> Bool {
    guard executes(prefix) else { return false }
    do {
      try table.checkExecute(address, rules: rules, memory: memory)
      return true
    } catch {
      return false
    }
  }
}

extension RemappingUnit {
  /// Answers a translation request (VT-d 4.1.1).
  func answer(
    _ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?, from source: RequesterID
  ) -> TranslationCompletion {
    let mode = ports.withLock { $0.mode }
    devices.withLock { $0.counters.count(.translationRequests) }
    trace?.record(
      .translationRequested,
      [.source(source), .hex("addr", address), .flag("no_write", noWrite)]
        + (prefix.map { [.hex("pasid", $0.pasid)] } ?? []))
    // While translation is disabled, a translation request is unsupported, but not a fault.
    guard mode.enabled else { return .unsupportedRequest }
    var lookup = lookup(source, in: mode)
    let reason: FaultReason
    do {
      return .success(try lookup.translate(address, noWrite: noWrite, prefix: prefix, rules: rules))
    } catch {
      reason = error
    }
    let answer = reason.translationAnswer
    if answer != .noAccess {
      record(reason, lookup, from: source, address: address, isRead: true, prefix: prefix, type: .translationRequest)
    }
    return switch answer {
    case .noAccess, .noAccessAndFault: .success(.noAccess(isPrivileged: prefix?.isPrivileged ?? false))
    case .unsupportedRequest: .unsupportedRequest
    case .completerAbort: .completerAbort
    }
  }
}
