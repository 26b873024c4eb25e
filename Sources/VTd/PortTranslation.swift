// Where one port's requests go: the entries and pages that are cached for its source, and the way through the
// tables when they are not (VT-d 3.4, 6.2).

import Hardware

/// One port's translation: what the unit's tables say of its source, as far as it is cached, and its
/// IOTLB. A plain value; `RemappingPort` puts a lock around it.
///
/// Each cache keeps its entries until they are invalidated (VT-d 6.2): the context entry, the
/// PASID-table entry and the pages. Entries that are not present or wrong are cached in caching mode only.
struct PortTranslation: Sendable {
  /// What became of a request.
  enum Outcome: Sendable {
    case segment(PhysicalSegment)
    /// - isSuppressed: FPD keeps it from being recorded.
    case fault(FaultReason, isSuppressed: Bool)
  }

  /// The PASID that this port's requests carry, or nil for none.
  let requestPASID: UInt32?
  /// They have Privileged Mode Requested set.
  let isPrivileged: Bool
  private let capabilities: Capabilities
  private let rules: WalkRules
  private let trace: Trace?

  private var mode = TranslationMode()
  private(set) var source = RequesterID(rawValue: 0)
  /// Scalable mode's cached context entry.
  private(set) var context: ScalableContextEntry?
  /// From the cached legacy context entry, or the cached PASID-table entry.
  private(set) var path = TranslationPath.unknown
  /// FPD of the entries that `path` comes from.
  private var pathFaultProcessingDisabled = false
  /// The PASID that `path` was found under.
  private(set) var pathPASID: UInt32 = 0
  private(set) var iotlb = IOTLB()

  /// An entry that is cached although it refuses requests.
  private struct Refusal: Sendable {
    let reason: FaultReason
    /// FPD of the entries read.
    let faultProcessingDisabled: Bool
  }
  /// In caching mode: the context entry, which is not present or wrong.
  private var contextRefusal: Refusal?
  /// Likewise the PASID-table entry of a PASID, or the directory entry above it.
  private var pasidRefusal: (pasid: UInt32, refusal: Refusal)?
  /// Likewise pages; nil where caching mode is not offered.
  private var refusedPages: NotPresentCache?

  /// Requests of a former source may be in flight, in a domain that is not known any more.
  private var hasStrays = false
  private(set) var counters = TranslationCounters()

  init(
    requestPASID: UInt32?, isPrivileged: Bool = false, capabilities: Capabilities, rules: WalkRules, trace: Trace? = nil
  ) {
    self.requestPASID = requestPASID
    self.isPrivileged = isPrivileged
    self.capabilities = capabilities
    self.rules = rules
    if capabilities.cachingMode { refusedPages = NotPresentCache() }
    self.trace = trace
  }

  // MARK: Requests

  @inline(__always)
  mutating func translate(
    _ address: UInt64, count: Int, for access: DMAAccess, from requester: RequesterID, memory: any PhysicalMemory
  ) -> Outcome {
    guard mode.enabled else {
      counters.untranslatedRequests &+= 1
      return .segment(PhysicalSegment(address: address, count: count))
    }
    guard requester == source, isReady, !WalkRules.isInterruptAddress(address), let tag = path.tag else {
      return slowly(address, count: count, for: access, from: requester, memory: memory)
    }
    if let segment = cached(address, count: count, for: access, tag: tag) { return .segment(segment) }
    return walked(address, count: count, for: access, tag: tag, memory: memory)
  }

  @inline(__always)
  private mutating func cached(
    _ address: UInt64, count: Int, for access: DMAAccess, tag: IOTLB.Tag
  ) -> PhysicalSegment? {
    guard let (output, shift) = iotlb.lookup(address, tag: tag, access: access) else { return nil }
    counters.iotlbHits &+= 1
    let offset = address & (1 &<< shift &- 1)
    let rest = Int(truncatingIfNeeded: 1 &<< shift &- offset)
    return PhysicalSegment(address: output | offset, count: min(count, rest))
  }

  /// Whether requests can go by `path` without reading an entry.
  private var isReady: Bool {
    if case .unknown = path { return false }
    return mode.tableMode == .legacy || context != nil
  }

  /// A request that is not in the IOTLB, of a source whose entries are cached.
  @inline(never)
  private mutating func walked(
    _ address: UInt64, count: Int, for access: DMAAccess, tag: IOTLB.Tag, memory: any PhysicalMemory
  ) -> Outcome {
    do {
      return .segment(try walk(address, count: count, for: access, tag: tag, memory: memory))
    } catch {
      return refused(address, access, error, faultProcessingDisabled: pathFaultProcessingDisabled)
    }
  }

  /// Any other request.
  @inline(never)
  private mutating func slowly(
    _ address: UInt64, count: Int, for access: DMAAccess, from requester: RequesterID, memory: any PhysicalMemory
  ) -> Outcome {
    if requester != source {
      if path.domain != nil { hasStrays = true }
      source = requester
      forgetAll()
    }
    if WalkRules.isInterruptAddress(address), requestPASID == nil {
      // An interrupt request, not subject to DMA remapping (VT-d 3.15): it goes where it says.
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
      // The entries were read anew; the pages may be cached still.
      if let segment = cached(address, count: count, for: access, tag: tag) { return .segment(segment) }
      return .segment(try walk(address, count: count, for: access, tag: tag, memory: memory))
    } catch {
      return refused(address, access, error, faultProcessingDisabled: faultProcessingDisabled)
    }
  }

  /// Where no first stage judges it, a request to execute is a read, if the unit takes such at all.
  private func checkExecuteOffered(_ access: DMAAccess) throws(FaultReason) {
    if access.contains(.execute), !capabilities.executeRequests { throw .executeRequestNotEnabled }
  }

  @inline(__always)
  private mutating func walk(
    _ address: UInt64, count: Int, for access: DMAAccess, tag: IOTLB.Tag, memory: any PhysicalMemory
  ) throws(FaultReason) -> PhysicalSegment {
    if let reason = refusedPages?.lookup(address, tag: tag, access: access) { throw reason }
    counters.iotlbMisses &+= 1
    let mapping: Mapping
    switch path {
    case .first(let table, _):
      if table.nested == nil { counters.firstStageWalks &+= 1 } else { counters.nestedWalks &+= 1 }
      mapping = try table.walk(address, for: access, rules: rules, memory: memory)
      if access.contains(.execute) { try table.checkExecute(address, rules: rules, memory: memory) }
    case .second(let table, _):
      try checkExecuteOffered(access)
      counters.secondStageWalks &+= 1
      mapping = try table.walk(address, for: access, rules: rules, memory: memory)
    case .unknown, .passThrough:
      try checkExecuteOffered(access)
      return try passThrough(address, count: count)
    }
    let output = mapping.address(of: address)
    if WalkRules.isInterruptAddress(output) {
      throw mode.tableMode == .legacy ? .interruptAddress : .scalableInterruptAddress
    }
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

  @inline(never)
  private mutating func refused(
    _ address: UInt64, _ access: DMAAccess, _ reason: FaultReason, faultProcessingDisabled: Bool
  ) -> Outcome {
    counters.faults &+= 1
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
        contextRefusal = Refusal(reason: reason, faultProcessingDisabled: faultProcessingDisabled)
      case .pasid:
        if let pasid = requestPASID ?? context?.ridPASID(capabilities) {
          pasidRefusal = (pasid, Refusal(reason: reason, faultProcessingDisabled: faultProcessingDisabled))
        }
      case .iotlb:
        if let tag = path.tag { refusedPages?.insert(reason, for: address, tag: tag, access: access) }
      case nil: break
      }
    }
    return .fault(reason, isSuppressed: isSuppressed)
  }

  private mutating func passThrough(_ address: UInt64, count: Int) throws(FaultReason) -> PhysicalSegment {
    counters.passThroughRequests &+= 1
    trace?.record(.passedThrough, [.source(source), .hex("addr", address)])
    guard !rules.exceedsHost(address) else {
      throw mode.tableMode == .legacy ? .addressBeyondWidth : .scalableAddressBeyondWidth
    }
    // A run does not go on into the interrupt range.
    let limit = address < 0xfee0_0000 ? 0xfee0_0000 - address : UInt64(Int.max)
    return PhysicalSegment(address: address, count: min(count, Int(clamping: limit)))
  }

  // MARK: Entries

  private mutating func loadEntries(
    _ memory: any PhysicalMemory, _ faultProcessingDisabled: inout Bool
  ) throws(FaultReason) {
    switch mode.tableMode {
    case .invalid: throw .translationTableModeInvalid
    case .legacy where requestPASID != nil: throw .pasidInLegacyMode
    case _ where isReady: break
    case .legacy: try loadLegacy(memory, &faultProcessingDisabled)
    case .scalable: try loadScalable(memory, &faultProcessingDisabled)
    }
  }

  /// Throws what a cached entry was refused for.
  private func check(_ refusal: Refusal?, _ faultProcessingDisabled: inout Bool) throws(FaultReason) {
    guard let refusal else { return }
    faultProcessingDisabled = refusal.faultProcessingDisabled
    throw refusal.reason
  }

  private mutating func loadLegacy(
    _ memory: any PhysicalMemory, _ faultProcessingDisabled: inout Bool
  ) throws(FaultReason) {
    try check(contextRefusal, &faultProcessingDisabled)
    counters.contextWalks &+= 1
    var lookup = SourceLookup(rootTable: mode.rootTable, source: source, capabilities: capabilities, memory: memory)
    defer { faultProcessingDisabled = lookup.faultProcessingDisabled }
    let entry = try lookup.legacyContext()
    path = try TranslationPath(entry, capabilities)
    trace?.record(.contextCached, [.source(source), .hex("high", entry.high), .hex("low", entry.low)])
    pathFaultProcessingDisabled = entry.faultProcessingDisabled
  }

  private mutating func loadScalable(
    _ memory: any PhysicalMemory, _ faultProcessingDisabled: inout Bool
  ) throws(FaultReason) {
    try check(contextRefusal, &faultProcessingDisabled)
    var lookup = SourceLookup(rootTable: mode.rootTable, source: source, capabilities: capabilities, memory: memory)
    defer { faultProcessingDisabled = lookup.faultProcessingDisabled }
    let context: ScalableContextEntry
    if let cached = self.context {
      context = cached
      lookup.faultProcessingDisabled = cached.faultProcessingDisabled
    } else {
      counters.contextWalks &+= 1
      context = try lookup.scalableContext()
      if requestPASID != nil, !context.pasidEnable { throw .pasidNotEnabled }
      self.context = context
      trace?.record(.contextCached, [.source(source), .hex("high", context.high), .hex("low", context.low)])
    }
    let pasid = requestPASID ?? context.ridPASID(capabilities)
    // What was found under another PASID is not for this one, even where this one's entry is wrong.
    if pasid != pathPASID { path = .unknown }
    if case .unknown = path {
    } else {
      lookup.faultProcessingDisabled = pathFaultProcessingDisabled
      return
    }
    if let pasidRefusal, pasidRefusal.pasid == pasid {
      lookup.faultProcessingDisabled = pasidRefusal.refusal.faultProcessingDisabled
      throw pasidRefusal.refusal.reason
    }
    counters.pasidWalks &+= 1
    let entry = try lookup.pasidEntry(pasid, isFromRequest: requestPASID != nil, context: context)
    path = try TranslationPath(
      entry, pasid: pasid, isSupervisor: requestPASID == nil ? context.ridPrivilege(capabilities) : isPrivileged,
      capabilities)
    pathPASID = pasid
    trace?.record(
      .pasidEntryCached,
      [
        .source(source), .hex("pasid", pasid), .hex("word2", entry.words.2), .hex("word1", entry.words.1),
        .hex("word0", entry.words.0),
      ])
    pathFaultProcessingDisabled = lookup.faultProcessingDisabled
  }

  /// What caching mode keeps now.
  var refusals: [CachedRefusal] {
    var refusals: [CachedRefusal] = []
    if let contextRefusal { refusals.append(CachedRefusal(place: .context, reason: contextRefusal.reason)) }
    if let (pasid, refusal) = pasidRefusal {
      refusals.append(CachedRefusal(place: .pasid(pasid), reason: refusal.reason))
    }
    return refusals + (refusedPages?.inspection ?? [])
  }

  // MARK: The unit's side

  /// Follows the unit's registers.
  /// - Parameter forgetting: everything cached goes: the root table was set.
  mutating func set(_ mode: TranslationMode, forgetting: Bool) {
    self.mode = mode
    if forgetting { forgetAll() }
  }

  private mutating func forgetAll() {
    context = nil
    contextRefusal = nil
    forgetPASIDEntry()
    iotlb.removeAll()
    refusedPages?.removeAll()
  }

  private mutating func forgetContext() {
    context = nil
    contextRefusal = nil
    if mode.tableMode != .scalable { path = .unknown }
  }

  private mutating func forgetPASIDEntry() {
    path = .unknown
    pasidRefusal = nil
  }

  private mutating func forgetPages(where matches: (IOTLB.Tag) -> Bool) {
    iotlb.removeAll(where: matches)
    refusedPages?.removeAll(where: matches)
  }

  private mutating func forgetPages(in pages: PageRange, where matches: (IOTLB.Tag) -> Bool) {
    iotlb.removeAll(in: pages, where: matches)
    refusedPages?.removeAll(in: pages, where: matches)
  }

  /// - Returns: whether requests in flight may go by what was invalidated, so that they are to be drained.
  mutating func invalidate(_ invalidation: Invalidation) -> Bool {
    let concerned = hasStrays || concerns(invalidation)
    if concerned { hasStrays = false }
    remove(invalidation)
    return concerned
  }

  private func concerns(_ invalidation: Invalidation) -> Bool {
    switch invalidation {
    case .allContexts, .allPASIDs, .allTranslations: true
    case .contextsOfDevice(let device, let mask): names(device, mask)
    // In scalable mode, context entries have no domain.
    case .contextsOfDomain(let domain): mode.tableMode == .scalable || goes(through: domain)
    case .pasidsOfDomain(let domain), .translationsOfDomain(let domain), .pagesOfDomain(let domain, _, _):
      goes(through: domain)
    case .pasid(let pasid, let domain), .translationsOfPASID(let pasid, let domain),
      .pagesOfPASID(let pasid, let domain, _, _):
      path.domain == nil || path.domain == domain && pathPASID == pasid
    case .deviceTLB, .deviceTLBOfPASID, .interruptEntries, .translationChanged, .interruptRemappingChanged: false
    }
  }

  /// Whether requests go by the domain's tables, as far as is known.
  private func goes(through domain: UInt16) -> Bool { path.domain ?? domain == domain }

  private func names(_ device: RequesterID, _ mask: FunctionMask) -> Bool {
    (device.rawValue ^ source.rawValue) & mask.significantBits == 0
  }

  private mutating func remove(_ invalidation: Invalidation) {
    switch invalidation {
    case .allContexts:
      forgetContext()
    case .contextsOfDomain(let domain):
      // What was refused is in domain 0.
      if mode.tableMode == .scalable || (contextRefusal == nil ? path.domain : 0) == domain { forgetContext() }
    case .contextsOfDevice(let device, let mask):
      if names(device, mask) { forgetContext() }
    case .allPASIDs:
      if mode.tableMode == .scalable { forgetPASIDEntry() }
    case .pasidsOfDomain(let domain):
      if mode.tableMode == .scalable, path.domain == domain { path = .unknown }
      // What was refused is in no domain.
      pasidRefusal = nil
    case .pasid(let pasid, let domain):
      if mode.tableMode == .scalable, path.domain == domain, pathPASID == pasid { path = .unknown }
      if pasidRefusal?.pasid == pasid { pasidRefusal = nil }
    case .allTranslations:
      iotlb.removeAll()
      refusedPages?.removeAll()
    case .translationsOfDomain(let domain):
      forgetPages { $0.domain == domain }
    case .pagesOfDomain(let domain, let pages, _):
      forgetPages(in: pages) { $0.domain == domain && $0.stages == .second }
      // The pages are second-stage input. First-stage and nested entries of the domain all go (VT-d 6.5.2.3).
      forgetPages { $0.domain == domain && $0.stages != .second }
    case .translationsOfPASID(let pasid, let domain):
      forgetPages { $0.domain == domain && $0.pasid == pasid && $0.stages != .second }
    case .pagesOfPASID(let pasid, let domain, let pages, _):
      forgetPages(in: pages) { $0.domain == domain && $0.pasid == pasid && $0.stages != .second }
    case .deviceTLB, .deviceTLBOfPASID, .interruptEntries, .translationChanged, .interruptRemappingChanged:
      break
    }
  }
}
