// The translation of one port's requests: the cached entries and pages of its source, and the reads of the tables on a
// miss (VT-d 3.4, 6.2).

import Hardware

/// The caches of one port and their use. A plain value; `RemappingPort` protects it with a lock.
///
/// The context entry, the PASID-table entry and the pages stay cached until software invalidates them (VT-d 6.2).
/// Entries that are not present or invalid are cached only in caching mode.
struct PortTranslation: Sendable {
  enum Outcome: Sendable {
    case segment(PhysicalSegment)
    /// - Parameter isSuppressed: whether FPD suppresses the recording.
    case fault(FaultReason, isSuppressed: Bool)
  }

  /// The PASID that this port's requests carry, or nil for none.
  let requestPASID: UInt32?
  /// Whether the requests have Privileged Mode Requested set.
  let isPrivileged: Bool
  private let capabilities: Capabilities
  private let rules: WalkRules
  private let trace: Trace?

  private var mode = TranslationMode()
  private(set) var source = RequesterID(rawValue: 0)
  /// Scalable mode's cached context entry.
  private(set) var context: ScalableContextEntry?
  /// From the cached context entry in legacy mode, else from the cached PASID-table entry.
  private(set) var path = TranslationPath.unknown
  /// FPD of the entries that define `path`.
  private var pathFaultProcessingDisabled = false
  /// The PASID whose entry defines `path`.
  private(set) var pathPASID: UInt32 = 0
  private(set) var iotlb = IOTLB()

  /// A cached entry that blocks requests.
  private struct CachedFault: Sendable {
    let reason: FaultReason
    /// FPD of the entries read.
    let faultProcessingDisabled: Bool
  }
  /// In caching mode: the fault of a context entry that is not present or invalid.
  private var contextFault: CachedFault?
  /// In caching mode: the fault of a PASID's directory entry or PASID-table entry.
  private var pasidFault: (pasid: UInt32, fault: CachedFault)?
  /// In caching mode: pages that the second stage blocks. Nil without caching mode.
  private var notPresentPages: NotPresentCache?

  /// Whether requests under a former source ID may be in flight. Their domain is no longer known.
  private var hasStrays = false
  private(set) var counters = TranslationCounters()

  init(
    requestPASID: UInt32?, isPrivileged: Bool = false, capabilities: Capabilities, rules: WalkRules, trace: Trace? = nil
  ) {
    self.requestPASID = requestPASID
    self.isPrivileged = isPrivileged
    self.capabilities = capabilities
    self.rules = rules
    if capabilities.cachingMode { notPresentPages = NotPresentCache() }
    self.trace = trace
  }

  // MARK: Requests

  @inline(__always)
  mutating func translate(
    _ address: UInt64, count: Int, for access: DMAAccess, from requester: RequesterID, memory: any PhysicalMemory
  ) -> Outcome {
    guard mode.enabled else {
      counters.count(.untranslatedRequests)
      return .segment(PhysicalSegment(address: address, count: count))
    }
    guard requester == source, isReady, !WalkRules.isInterruptAddress(address), let tag = path.tag else {
      return translateUncommon(address, count: count, for: access, from: requester, memory: memory)
    }
    if let segment = hit(address, count: count, for: access, tag: tag) { return .segment(segment) }
    return translateMiss(address, count: count, for: access, tag: tag, memory: memory)
  }

  /// Answers a request from the IOTLB.
  @inline(__always)
  private mutating func hit(
    _ address: UInt64, count: Int, for access: DMAAccess, tag: IOTLB.Tag
  ) -> PhysicalSegment? {
    guard let (output, shift) = iotlb.lookup(address, tag: tag, access: access) else { return nil }
    counters.count(.iotlbHits)
    let offset = address & (1 &<< shift &- 1)
    let rest = Int(truncatingIfNeeded: 1 &<< shift &- offset)
    return PhysicalSegment(address: output | offset, count: min(count, rest))
  }

  /// Whether `path` is usable without reading an entry.
  private var isReady: Bool {
    if case .unknown = path { return false }
    return mode.tableMode == .legacy || context != nil
  }

  /// Translates a request that misses the IOTLB, from a source whose entries are cached.
  @inline(never)
  private mutating func translateMiss(
    _ address: UInt64, count: Int, for access: DMAAccess, tag: IOTLB.Tag, memory: any PhysicalMemory
  ) -> Outcome {
    do {
      return .segment(try walk(address, count: count, for: access, tag: tag, memory: memory))
    } catch {
      return block(address, access, error, faultProcessingDisabled: pathFaultProcessingDisabled)
    }
  }

  /// Translates a request whose source has changed or has no cached entries, or a request to the interrupt address
  /// range.
  @inline(never)
  private mutating func translateUncommon(
    _ address: UInt64, count: Int, for access: DMAAccess, from requester: RequesterID, memory: any PhysicalMemory
  ) -> Outcome {
    if requester != source {
      if path.domain != nil { hasStrays = true }
      source = requester
      forgetAll()
    }
    if WalkRules.isInterruptAddress(address), requestPASID == nil {
      // DMA remapping does not apply to an interrupt request (VT-d 3.15).
      return .segment(PhysicalSegment(address: address, count: min(count, 0x1000 - Int(address & 0xfff))))
    }
    var faultProcessingDisabled = false
    do throws(FaultReason) {
      try loadEntries(memory, &faultProcessingDisabled)
      faultProcessingDisabled = pathFaultProcessingDisabled
      if WalkRules.isInterruptAddress(address) { throw .scalableInterruptAddress }  // only with PASID
      guard let tag = path.tag else {
        try checkExecuteOffered(access)
        return .segment(try passThrough(address, count: count))
      }
      // Only the entries were missing; the page may still be cached.
      if let segment = hit(address, count: count, for: access, tag: tag) { return .segment(segment) }
      return .segment(try walk(address, count: count, for: access, tag: tag, memory: memory))
    } catch {
      return block(address, access, error, faultProcessingDisabled: faultProcessingDisabled)
    }
  }

  /// Throws for a request to execute if the unit does not offer ECAP.ERS. Without a first stage, the request is a read.
  private func checkExecuteOffered(_ access: DMAAccess) throws(FaultReason) {
    if access.contains(.execute), !capabilities.executeRequests { throw .executeRequestNotEnabled }
  }

  @inline(__always)
  private mutating func walk(
    _ address: UInt64, count: Int, for access: DMAAccess, tag: IOTLB.Tag, memory: any PhysicalMemory
  ) throws(FaultReason) -> PhysicalSegment {
    if let reason = notPresentPages?.lookup(address, tag: tag, access: access) { throw reason }
    counters.count(.iotlbMisses)
    let mapping: Mapping
    switch path {
    case .first(let table, _):
      if table.nested == nil { counters.count(.firstStageWalks) } else { counters.count(.nestedWalks) }
      mapping = try table.walk(address, for: access, rules: rules, memory: memory)
      if access.contains(.execute) { try table.checkExecute(address, rules: rules, memory: memory) }
    case .second(let table, _):
      try checkExecuteOffered(access)
      counters.count(.secondStageWalks)
      mapping = try table.walk(address, for: access, rules: rules, memory: memory)
    case .unknown, .passThrough:
      try checkExecuteOffered(access)
      return try passThrough(address, count: count)
    }
    let output = mapping.address(of: address)
    if WalkRules.isInterruptAddress(output) { throw mode.interruptAddressFault }
    trace?.record(
      .walked,
      [
        .source(source), .hex("iova", address), .hex("gpa", output), .hex("mask", mapping.offsetMask),
        .hex("domain", tag.domain), .hex("pasid", tag.pasid), .flag("write", access.contains(.write)),
      ])
    let shift = iotlb.insert(mapping, for: address, tag: tag)
    let rest = (1 &<< shift) &- (address & (1 &<< shift &- 1))
    return PhysicalSegment(address: output, count: min(count, Int(truncatingIfNeeded: rest)))
  }

  /// Counts, traces and, in caching mode, caches the fault of a request.
  @inline(never)
  private mutating func block(
    _ address: UInt64, _ access: DMAAccess, _ reason: FaultReason, faultProcessingDisabled: Bool
  ) -> Outcome {
    counters.count(.faults)
    let isSuppressed = faultProcessingDisabled && reason.isQualified
    trace?.record(
      .faulted,
      [
        .source(source), .hex("fault", reason.rawValue), .hex("addr", address),
        .flag("write", access.contains(.write)), .flag("suppressed", isSuppressed),
      ] + (requestPASID.map { [.hex("pasid", $0)] } ?? []))
    if capabilities.cachingMode {
      switch reason.cache(stages: path.tag?.stages) {
      case .context:
        contextFault = CachedFault(reason: reason, faultProcessingDisabled: faultProcessingDisabled)
      case .pasid:
        if let pasid = requestPASID ?? context?.ridPASID(capabilities) {
          pasidFault = (pasid, CachedFault(reason: reason, faultProcessingDisabled: faultProcessingDisabled))
        }
      case .iotlb:
        if let tag = path.tag { notPresentPages?.insert(reason, for: address, tag: tag, access: access) }
      case nil: break
      }
    }
    return .fault(reason, isSuppressed: isSuppressed)
  }

  private mutating func passThrough(_ address: UInt64, count: Int) throws(FaultReason) -> PhysicalSegment {
    counters.count(.passThroughRequests)
    trace?.record(.passedThrough, [.source(source), .hex("addr", address)])
    guard !rules.exceedsHost(address) else { throw mode.addressWidthFault }
    // The segment ends before the interrupt address range.
    let interrupts = WalkRules.interruptAddresses.lowerBound
    let limit = address < interrupts ? interrupts - address : UInt64(Int.max)
    return PhysicalSegment(address: address, count: min(count, Int(clamping: limit)))
  }

  // MARK: Entries

  /// Completes `path`: reads from the tables the entries that are not cached.
  private mutating func loadEntries(
    _ memory: any PhysicalMemory, _ faultProcessingDisabled: inout Bool
  ) throws(FaultReason) {
    if isReady { return }
    var lookup = SourceLookup(mode, source: source, capabilities: capabilities, memory: memory)
    defer {
      faultProcessingDisabled = lookup.faultProcessingDisabled
      counters[.contextWalks] &+= lookup.contextReads
      counters[.pasidWalks] &+= lookup.pasidReads
    }
    try check(contextFault, &lookup)
    let context = try loadContext(&lookup)
    if case .scalable(let entry) = context {
      let pasid = requestPASID ?? entry.ridPASID(capabilities)
      // Another PASID's path must not serve this PASID, even if this PASID's entry is invalid.
      if pasid != pathPASID { path = .unknown }
      guard case .unknown = path else {
        lookup.faultProcessingDisabled = pathFaultProcessingDisabled
        return
      }
      if let pasidFault, pasidFault.pasid == pasid { try check(pasidFault.fault, &lookup) }
      let resolved = try lookup.path(of: requestPASID, isPrivileged: isPrivileged, in: context)
      path = resolved.path
      pathPASID = pasid
      if let entry = resolved.pasidEntry {
        trace?.record(
          .pasidEntryCached,
          [
            .source(source), .hex("pasid", pasid), .hex("word2", entry.words.2), .hex("word1", entry.words.1),
            .hex("word0", entry.words.0),
          ])
      }
    } else {
      path = try lookup.path(of: nil, isPrivileged: false, in: context).path
    }
    pathFaultProcessingDisabled = lookup.faultProcessingDisabled
  }

  /// Returns the context entry from the cache or the tables.
  private mutating func loadContext(_ lookup: inout SourceLookup) throws(FaultReason) -> SourceContext {
    if let context {
      lookup.faultProcessingDisabled = context.faultProcessingDisabled
      return .scalable(context)
    }
    let loaded = try lookup.context(for: .untranslated, pasid: requestPASID)
    switch loaded {
    case .legacy(let entry, _):
      trace?.record(.contextCached, [.source(source), .hex("high", entry.high), .hex("low", entry.low)])
    case .scalable(let entry):
      context = entry
      trace?.record(.contextCached, [.source(source), .hex("high", entry.high), .hex("low", entry.low)])
    }
    return loaded
  }

  /// Throws the reason of a cached fault.
  private func check(_ fault: CachedFault?, _ lookup: inout SourceLookup) throws(FaultReason) {
    guard let fault else { return }
    lookup.faultProcessingDisabled = fault.faultProcessingDisabled
    throw fault.reason
  }

  /// The faults that are cached in caching mode.
  var refusals: [CachedRefusal] {
    var refusals: [CachedRefusal] = []
    if let contextFault { refusals.append(CachedRefusal(place: .context, reason: contextFault.reason)) }
    if let (pasid, fault) = pasidFault {
      refusals.append(CachedRefusal(place: .pasid(pasid), reason: fault.reason))
    }
    return refusals + (notPresentPages?.inspection ?? [])
  }

  // MARK: The unit's side

  /// Adopts the mode of the unit's registers.
  /// - Parameter forgetting: whether to empty the caches, because software set the root table.
  mutating func set(_ mode: TranslationMode, forgetting: Bool) {
    self.mode = mode
    if forgetting { forgetAll() }
  }

  private mutating func forgetAll() {
    context = nil
    contextFault = nil
    forgetPASIDEntry()
    iotlb.removeAll()
    notPresentPages?.removeAll()
  }

  private mutating func forgetContext() {
    context = nil
    contextFault = nil
    if mode.tableMode != .scalable { path = .unknown }
  }

  private mutating func forgetPASIDEntry() {
    path = .unknown
    pasidFault = nil
  }

  private mutating func forgetPages(where matches: (IOTLB.Tag) -> Bool) {
    iotlb.removeAll(where: matches)
    notPresentPages?.removeAll(where: matches)
  }

  private mutating func forgetPages(in pages: PageRange, where matches: (IOTLB.Tag) -> Bool) {
    iotlb.removeAll(in: pages, where: matches)
    notPresentPages?.removeAll(in: pages, where: matches)
  }

  /// Removes the entries that an invalidation selects.
  /// - Returns: whether requests in flight may use invalidated entries, so that the caller must drain them.
  mutating func invalidate(_ invalidation: Invalidation) -> Bool {
    let isConcerned: Bool
    switch invalidation {
    case .allContexts:
      isConcerned = true
      forgetContext()
    case .contextsOfDomain(let domain):
      // In scalable mode, context entries have no domain. A cached fault belongs to domain 0.
      let isScalable = mode.tableMode == .scalable
      isConcerned = isScalable || mayUse(domain)
      if isScalable || (contextFault == nil ? path.domain : 0) == domain { forgetContext() }
    case .contextsOfDevice(let device, let mask):
      isConcerned = mask.matches(device, source)
      if isConcerned { forgetContext() }
    case .allPASIDs:
      isConcerned = true
      if mode.tableMode == .scalable { forgetPASIDEntry() }
    case .pasidsOfDomain(let domain):
      isConcerned = mayUse(domain)
      if mode.tableMode == .scalable, path.domain == domain { path = .unknown }
      // A cached fault has no domain, so it may concern this one.
      pasidFault = nil
    case .pasid(let pasid, let domain):
      isConcerned = mayUse(pasid, in: domain)
      if mode.tableMode == .scalable, path.domain == domain, pathPASID == pasid { path = .unknown }
      if pasidFault?.pasid == pasid { pasidFault = nil }
    case .allTranslations:
      isConcerned = true
      iotlb.removeAll()
      notPresentPages?.removeAll()
    case .translationsOfDomain(let domain):
      isConcerned = mayUse(domain)
      forgetPages { $0.domain == domain }
    case .pagesOfDomain(let domain, let pages, _):
      isConcerned = mayUse(domain)
      forgetPages(in: pages) { $0.domain == domain && $0.stages == .second }
      // The pages are second-stage input, so the unit removes all first-stage and nested entries of the domain
      // (6.5.2.3).
      forgetPages { $0.domain == domain && $0.stages != .second }
    case .translationsOfPASID(let pasid, let domain):
      isConcerned = mayUse(pasid, in: domain)
      forgetPages { $0.domain == domain && $0.pasid == pasid && $0.stages != .second }
    case .pagesOfPASID(let pasid, let domain, let pages, _):
      isConcerned = mayUse(pasid, in: domain)
      forgetPages(in: pages) { $0.domain == domain && $0.pasid == pasid && $0.stages != .second }
    case .deviceTLB, .deviceTLBOfPASID, .interruptEntries, .translationChanged, .interruptRemappingChanged:
      isConcerned = false
    }
    defer { hasStrays = false }
    return hasStrays || isConcerned
  }

  /// Whether requests may use the domain's tables. True while no entry is cached.
  private func mayUse(_ domain: UInt16) -> Bool { path.domain ?? domain == domain }

  /// Whether requests may use the tables of a PASID in a domain. True while no entry is cached.
  private func mayUse(_ pasid: UInt32, in domain: UInt16) -> Bool {
    path.domain == nil || path.domain == domain && pathPASID == pasid
  }
}
