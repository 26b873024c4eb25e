import Hardware

// The entries of one source in the tables in memory, not in the caches: root entry, context entry, PASID directory and
// PASID table, down to the roots of the paging tables (VT-d 3.4).

/// The paging tables that translate the requests of a source or of one of its PASIDs.
public struct TableRoots: Hashable, Sendable {
  public struct Root: Hashable, Sendable {
    /// Address of the highest table. A guest physical address for a first stage in nested translation.
    public let address: UInt64
    public let levels: Int
  }

  /// DID.
  public let domain: UInt16
  /// Both stages are set in nested translation, neither in pass-through.
  public let firstStage: Root?
  public let secondStage: Root?

  public var isPassThrough: Bool { firstStage == nil && secondStage == nil }
  public var isNested: Bool { firstStage != nil && secondStage != nil }

  /// Returns nil for `TranslationPath.unknown`.
  init?(_ path: TranslationPath) {
    guard let domain = path.domain else { return nil }
    self.domain = domain
    switch path {
    case .first(let table, _):
      firstStage = Root(address: table.root, levels: table.levels)
      secondStage = table.nested.map { Root(address: $0.root, levels: $0.levels) }
    case .second(let table, _):
      firstStage = nil
      secondStage = Root(address: table.root, levels: table.levels)
    default:
      firstStage = nil
      secondStage = nil
    }
  }
}

/// The result of reading a source's entries.
public enum TableOutcome: Hashable, Sendable {
  case roots(TableRoots)
  case fault(FaultReason)
}

public struct SourceTables: Hashable, Sendable {
  /// A PASID with a present entry.
  public struct PASID: Hashable, Sendable {
    public let number: UInt32
    /// Whether this PASID is the context entry's RID_PASID, which requests without PASID use.
    public let isForRequestsWithout: Bool
    public let directory: StructureEntry
    public let entry: StructureEntry
    public let outcome: TableOutcome
  }

  public let source: RequesterID
  public let root: StructureEntry
  /// The context entry; nil if the root entry is not present.
  public let context: StructureEntry?
  /// In legacy mode, the result of reading the context entry. In scalable mode, the fault that every request meets
  /// before the unit reads a PASID entry; nil if there is none.
  public let outcome: TableOutcome?
  /// The present entries, in scalable mode.
  public let pasids: [PASID]
  /// Whether `pasids` is incomplete.
  public let isCut: Bool
}

/// Reads the tables for inspection.
struct TableReader {
  /// The limits of a listing: present PASID-table entries, and present directory entries.
  static let pasidLimit = 64
  static let directoryLimit = 256

  let mode: TranslationMode
  let capabilities: Capabilities
  let memory: any PhysicalMemory

  private func lookup(_ source: RequesterID) -> SourceLookup {
    SourceLookup(mode, source: source, capabilities: capabilities, memory: memory)
  }

  func rootEntry(_ source: RequesterID) -> StructureEntry {
    let address = mode.rootTable &+ UInt64(source.bus) * 16
    guard mode.tableMode == .scalable else { return StructureEntry(.root, at: address, memory: memory) }
    return StructureEntry(
      .scalableRoot, at: source.deviceFunction < 0x80 ? address : address &+ 8, memory: memory)
  }

  /// - Returns: nil if the root entry is not present.
  func contextEntry(_ source: RequesterID, under root: StructureEntry) -> StructureEntry? {
    guard root.isPresent, let table = root.pointer else { return nil }
    return mode.tableMode == .scalable
      ? StructureEntry(
        .scalableContext, at: table &+ UInt64(source.deviceFunction & 0x7f) * 32, memory: memory)
      : StructureEntry(.context, at: table &+ UInt64(source.deviceFunction) * 16, memory: memory)
  }

  func directoryEntry(_ pasid: UInt32, _ context: ScalableContextEntry) -> StructureEntry {
    StructureEntry(.pasidDirectory, at: context.directoryPointer &+ UInt64(pasid >> 6) * 8, memory: memory)
  }

  /// Returns a PASID-table entry; nil if the directory entry is not present.
  func pasidEntry(_ pasid: UInt32, under directory: StructureEntry) -> StructureEntry? {
    guard directory.isPresent, let table = directory.pointer else { return nil }
    return StructureEntry(.pasid, at: table &+ UInt64(pasid & 0x3f) * 64, memory: memory)
  }

  func scalableContext(_ source: RequesterID) throws(FaultReason) -> ScalableContextEntry {
    var lookup = lookup(source)
    return try lookup.scalableContext()
  }

  private func legacyOutcome(_ source: RequesterID) -> TableOutcome {
    var lookup = lookup(source)
    do throws(FaultReason) {
      return try outcome(TranslationPath(try lookup.legacyContext(), capabilities))
    } catch {
      return .fault(error)
    }
  }

  private func outcome(_ path: TranslationPath) throws(FaultReason) -> TableOutcome {
    guard let roots = TableRoots(path) else { throw .contextEntryInvalid }
    return .roots(roots)
  }

  private func outcome(
    of pasid: UInt32, isFromRequest: Bool, _ source: RequesterID, _ context: ScalableContextEntry
  ) -> TableOutcome {
    var lookup = lookup(source)
    do throws(FaultReason) {
      let entry = try lookup.pasidEntry(pasid, isFromRequest: isFromRequest, context: context)
      return try outcome(
        TranslationPath(
          entry, pasid: pasid, isSupervisor: !isFromRequest && context.ridPrivilege(capabilities),
          capabilities))
    } catch {
      return .fault(error)
    }
  }

  func tables(of source: RequesterID) -> SourceTables {
    let root = rootEntry(source)
    let contextEntry = contextEntry(source, under: root)
    func result(_ outcome: TableOutcome?, _ pasids: [SourceTables.PASID] = [], isCut: Bool = false) -> SourceTables {
      SourceTables(
        source: source, root: root, context: contextEntry, outcome: outcome, pasids: pasids, isCut: isCut)
    }
    switch mode.tableMode {
    case .invalid: return result(.fault(.translationTableModeInvalid))
    case .legacy: return result(legacyOutcome(source))
    case .scalable: break
    }
    let context: ScalableContextEntry
    do throws(FaultReason) {
      context = try scalableContext(source)
    } catch {
      return result(.fault(error))
    }
    var pasids: [SourceTables.PASID] = []
    var tables = 0
    for index in 0..<context.directoryEntries {
      let directory = directoryEntry(index << 6, context)
      guard directory.isPresent else { continue }
      tables += 1
      if tables > Self.directoryLimit { return result(nil, pasids, isCut: true) }
      for pasid in index << 6..<(index + 1) << 6 {
        guard let entry = pasidEntry(pasid, under: directory), entry.isPresent else { continue }
        if pasids.count == Self.pasidLimit { return result(nil, pasids, isCut: true) }
        let isForRequestsWithout = pasid == context.ridPASID(capabilities)
        pasids.append(
          SourceTables.PASID(
            number: pasid, isForRequestsWithout: isForRequestsWithout, directory: directory, entry: entry,
            outcome: outcome(of: pasid, isFromRequest: !isForRequestsWithout, source, context)))
      }
    }
    return result(nil, pasids)
  }
}
