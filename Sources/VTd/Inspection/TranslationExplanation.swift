import Hardware

// How a unit would answer one request now, from the tables in memory, with every entry on the way: for people, beside
// `PortTranslation`, which answers requests. Memory, caches and counters stay as they are.

/// The answer to one request, and how it came about.
public struct TranslationExplanation: Hashable, Sendable {
  public enum Result: Hashable, Sendable {
    /// Translation is disabled.
    case untranslated
    /// The address is in the interrupt range, and a request without PASID to it is an interrupt request (VT-d 3.15).
    case interruptRequest
    case passThrough
    /// - Parameters:
    ///   - output: what the address stands for.
    ///   - size: of the page as it could be cached, in bytes.
    ///   - writable: another write could go by the cached page: not before its entry is marked dirty.
    case page(output: UInt64, size: UInt64, readable: Bool, writable: Bool)
    /// - Parameter isRecorded: no Fault Processing Disable on the way keeps it out of the fault recording registers.
    case fault(FaultReason, isRecorded: Bool)
  }

  public let source: RequesterID
  /// That of the request.
  public let pasid: UInt32?
  public let address: UInt64
  public let access: DMAAccess
  /// Root entry, context entry, PASID directory entry, PASID-table entry, as far as they were read.
  public internal(set) var entries: [StructureEntry] = []
  public internal(set) var roots: TableRoots?
  /// The paging entries: the first stage's where there is one, else the second stage's.
  public internal(set) var steps: [PagingStep] = []
  /// Nested: the second stage's for the address that the first stage came to.
  public internal(set) var stepsBelow: [PagingStep] = []
  public internal(set) var result = Result.untranslated
  /// What ports of this source have cached for the address. Where it says something else than `result`, the guest
  /// has changed its tables and not invalidated.
  public internal(set) var cached: [CachedPage] = []
}

extension TranslationExplanation {
  /// What stands in the way of an address.
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

  /// Goes from the root table to the roots of paging tables; notes the entries.
  private mutating func path(
    _ reader: TableReader, _ memory: any PhysicalMemory
  ) throws(Refusal) -> (TranslationPath, faultProcessingDisabled: Bool) {
    let root = reader.rootEntry(source)
    entries.append(root)
    let contextEntry = reader.contextEntry(source, under: root)
    if let contextEntry { entries.append(contextEntry) }

    // What counts is how the unit itself reads them.
    var lookup = SourceLookup(
      rootTable: reader.mode.rootTable, source: source, capabilities: reader.capabilities, memory: memory)
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
