import Hardware

// An explanation of how the tables in memory would translate one request now, with every entry that is read. It changes
// no memory, cache or counter; `PortTranslation` translates real requests.

/// The translation of one request, with the entries that lead to it.
public struct TranslationExplanation: Hashable, Sendable {
  public enum Result: Hashable, Sendable {
    /// Translation is disabled.
    case untranslated
    /// The request has no PASID and its address is in the interrupt range, so it is an interrupt request (VT-d 3.15).
    case interruptRequest
    case passThrough
    /// - Parameters:
    ///   - output: the physical address of the request.
    ///   - size: the size in bytes of the page that the unit could cache.
    ///   - writable: whether the cached page would permit writes. False while the dirty bit of its entry is clear.
    case page(output: UInt64, size: UInt64, readable: Bool, writable: Bool)
    /// - Parameter isRecorded: whether the unit would record the fault; false where FPD suppresses it.
    case fault(FaultReason, isRecorded: Bool)
  }

  public let source: RequesterID
  /// The PASID of the request.
  public let pasid: UInt32?
  public let address: UInt64
  public let access: DMAAccess
  /// Root entry, context entry, PASID directory entry and PASID-table entry, as far as they were read.
  public internal(set) var entries: [StructureEntry] = []
  public internal(set) var roots: TableRoots?
  /// The paging entries of the first stage, or of the second stage if there is no first stage.
  public internal(set) var steps: [PagingStep] = []
  /// In nested translation: the second stage's entries for the first stage's output.
  public internal(set) var stepsBelow: [PagingStep] = []
  public internal(set) var result = Result.untranslated
  /// The cached pages of this source that contain the address. If they differ from `result`, the guest has changed its
  /// tables without an invalidation.
  public internal(set) var cached: [CachedPage] = []
}

extension TranslationExplanation {
  /// The fault that ends an explanation.
  private struct Refusal: Error {
    let reason: FaultReason
    let faultProcessingDisabled: Bool
  }

  init(
    source: RequesterID, pasid: UInt32?, address: UInt64, access: DMAAccess, mode: TranslationMode,
    capabilities: Capabilities, rules: WalkRules, memory: any PhysicalMemory
  ) {
    self.source = source
    self.pasid = pasid
    self.address = address
    self.access = access
    do throws(Refusal) {
      result = try explain(mode, capabilities, rules, memory)
    } catch {
      result = .fault(
        error.reason, isRecorded: !(error.faultProcessingDisabled && error.reason.isQualified))
    }
  }

  private mutating func explain(
    _ mode: TranslationMode, _ capabilities: Capabilities, _ rules: WalkRules, _ memory: any PhysicalMemory
  ) throws(Refusal) -> Result {
    guard mode.enabled else { return .untranslated }
    let isInterruptAddress = WalkRules.isInterruptAddress(address)
    if isInterruptAddress, pasid == nil { return .interruptRequest }
    switch mode.tableMode {
    case .invalid: throw Refusal(reason: .translationTableModeInvalid, faultProcessingDisabled: false)
    case .legacy where pasid != nil: throw Refusal(reason: .pasidInLegacyMode, faultProcessingDisabled: false)
    case .legacy, .scalable: break
    }
    let reader = TableReader(mode: mode, capabilities: capabilities, memory: memory)
    let (path, isDisabled) = try path(reader, memory)
    roots = TableRoots(path)
    func refuse(_ reason: FaultReason) -> Refusal { Refusal(reason: reason, faultProcessingDisabled: isDisabled) }
    if isInterruptAddress { throw refuse(.scalableInterruptAddress) }

    let isLegacy = mode.tableMode == .legacy
    var walk = ExplainingWalk(rules: rules, memory: memory)
    let mapping: Mapping
    do throws(FaultReason) {
      switch path {
      case .unknown, .passThrough:
        if rules.exceedsHost(address) { throw isLegacy ? .addressBeyondWidth : .scalableAddressBeyondWidth }
        return .passThrough
      case .first(let table, _):
        mapping = try walk.walk(table, address, for: access, steps: &steps, below: &stepsBelow)
      case .second(let table, _):
        mapping = try walk.walk(table, address, for: access, steps: &steps)
      }
      let output = mapping.address(of: address)
      if WalkRules.isInterruptAddress(output) { throw isLegacy ? .interruptAddress : .scalableInterruptAddress }
      return .page(
        output: output, size: 1 << UInt64(mapping.shift), readable: mapping.readable, writable: mapping.writable)
    } catch {
      throw refuse(error)
    }
  }

  /// Reads the entries from the root table down to the roots of the paging tables, and records them.
  private mutating func path(
    _ reader: TableReader, _ memory: any PhysicalMemory
  ) throws(Refusal) -> (TranslationPath, faultProcessingDisabled: Bool) {
    let root = reader.rootEntry(source)
    entries.append(root)
    let contextEntry = reader.contextEntry(source, under: root)
    if let contextEntry { entries.append(contextEntry) }

    // The result comes from `SourceLookup`, which real requests use, too.
    var lookup = SourceLookup(reader.mode, source: source, capabilities: reader.capabilities, memory: memory)
    do throws(FaultReason) {
      if reader.mode.tableMode == .legacy {
        let entry = try lookup.legacyContext()
        return (try TranslationPath(entry, reader.capabilities), entry.faultProcessingDisabled)
      }
      let context = try lookup.scalableContext()
      if pasid != nil, !context.pasidEnable { throw .pasidNotEnabled }
      let number = pasid ?? context.ridPASID(reader.capabilities)
      if number >> 6 < context.directoryEntries {
        let directory = reader.directoryEntry(number, context)
        entries.append(directory)
        if let entry = reader.pasidEntry(number, under: directory) { entries.append(entry) }
      }
      let entry = try lookup.pasidEntry(number, isFromRequest: pasid != nil, context: context)
      let path = try TranslationPath(
        entry, pasid: number, isSupervisor: pasid == nil && context.ridPrivilege(reader.capabilities),
        reader.capabilities)
      return (path, lookup.faultProcessingDisabled)
    } catch {
      throw Refusal(reason: error, faultProcessingDisabled: lookup.faultProcessingDisabled)
    }
  }
}
