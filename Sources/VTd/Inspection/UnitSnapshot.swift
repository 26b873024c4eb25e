import Hardware

/// The state of a unit for inspection: registers, the entries of some sources, caches and counters. The guest runs
/// meanwhile, so the parts may come from different moments.
public struct UnitSnapshot: Hashable, Sendable {
  /// RTADDR.TTM.
  public enum TableMode: Hashable, Sendable {
    case legacy
    case scalable
    /// A reserved value: every request is a fault.
    case reserved
  }

  public struct Register: Hashable, Sendable {
    public let mnemonic: String
    /// The register's offset in bytes from the start of the unit's page.
    public let offset: Int
    /// In bytes: 4 or 8.
    public let width: Int
    public let value: UInt64
  }

  /// The invalidation queue (VT-d 6.5.2).
  public struct Queue: Hashable, Sendable {
    public let isEnabled: Bool
    public let base: UInt64
    /// In bytes.
    public let size: Int
    /// Whether descriptors have 256 bits.
    public let isWide: Bool
    /// Offsets in bytes.
    public let head: Int
    public let tail: UInt64
  }

  public struct InterruptRemapping: Hashable, Sendable {
    public let isEnabled: Bool
    /// CFIS: requests in compatibility format pass.
    public let allowsCompatibilityFormat: Bool
    /// EIME: 32-bit destinations.
    public let isExtended: Bool
    public let table: UInt64
    public let entries: Int
    public let cached: [CachedInterruptEntry]
  }

  public let options: UnitOptions
  public let isTranslationEnabled: Bool
  public let tableMode: TableMode
  public let rootTable: UInt64
  public let registers: [Register]
  public let queue: Queue
  public let interruptRemapping: InterruptRemapping
  /// The entries of the requested sources. Empty while translation is disabled and no root table is set.
  public let sources: [SourceTables]
  /// The caches of every port, including empty ones.
  public let caches: [PortCache]
  /// The connected remote IOTLBs.
  public let remotes: [RemoteCache]
  public let counters: TranslationCounters
}

extension RemappingUnit {
  /// - Parameter sources: the sources whose tables to read.
  public func snapshot(of sources: [RequesterID]) -> UnitSnapshot {
    let (mode, interruptMode, queue, values) = registers.state.withLock { registers in
      (
        registers.translationMode, registers.interruptMode,
        UnitSnapshot.Queue(
          isEnabled: registers.globalStatus.contains(.queuedInvalidationEnable), base: registers.queue.base,
          size: registers.queue.size, isWide: registers.queue.isWide, head: registers.queue.head,
          tail: registers.file[quadword: RegisterOffset.invalidationQueueTail]),
        RegisterDescription.all(capabilities).map {
          UnitSnapshot.Register(
            mnemonic: $0.mnemonic, offset: $0.offset, width: $0.width,
            value: registers.file.read(offset: $0.offset, width: $0.width))
        }
      )
    }
    let reader = TableReader(mode: mode, capabilities: capabilities, memory: memory)
    return UnitSnapshot(
      options: options, isTranslationEnabled: mode.enabled,
      tableMode: mode.tableMode == .legacy ? .legacy : mode.tableMode == .scalable ? .scalable : .reserved,
      rootTable: mode.rootTable, registers: values, queue: queue,
      interruptRemapping: UnitSnapshot.InterruptRemapping(
        isEnabled: interruptMode.enabled, allowsCompatibilityFormat: interruptMode.allowsCompatibilityFormat,
        isExtended: interruptMode.extended, table: interruptMode.table, entries: interruptMode.entries,
        cached: interrupts.cachedEntries),
      sources: mode.enabled || mode.rootTable != 0 ? sources.map(reader.tables) : [],
      caches: portCaches, remotes: ports.withLock { $0.remotes }.map(\.inspection).sorted { $0.source < $1.source },
      counters: counters)
  }

  /// Explains the translation that a request would have now, entry by entry, from the tables in memory.
  /// - Parameter pasid: the PASID of the request, or nil for a request without PASID.
  public func explanation(
    of address: UInt64, for access: DMAAccess, from source: RequesterID, pasid: UInt32? = nil
  ) -> TranslationExplanation {
    let mode = registers.state.withLock { $0.translationMode }
    var explanation = TranslationExplanation(
      source: source, pasid: pasid, address: address, access: access, mode: mode, capabilities: capabilities,
      rules: rules, memory: memory)
    if mode.enabled {
      explanation.cached = portCaches.filter { $0.source == source && $0.requestPASID == pasid }
        .flatMap(\.pages).filter { $0.contains(address) }
    }
    return explanation
  }

  private var portCaches: [PortCache] {
    ports.withLock { $0.all }.map(\.inspection).sorted {
      ($0.source, $0.requestPASID ?? 0) < ($1.source, $1.requestPASID ?? 0)
    }
  }
}

// The contents of a unit's caches (VT-d 6.2), copied under each cache's lock.

/// A page in a port's IOTLB.
public struct CachedPage: Hashable, Sendable {
  /// The stages that translated the page.
  public enum Stages: Hashable, Sendable {
    case first
    case second
    case both
  }

  /// First address of the page.
  public let input: UInt64
  /// First physical address of the page.
  public let output: UInt64
  /// In bytes.
  public let size: UInt64
  public let readable: Bool
  public let writable: Bool
  public let domain: UInt16
  public let pasid: UInt32
  public let stages: Stages

  public func contains(_ address: UInt64) -> Bool { address & ~(size &- 1) == input }
}

/// A cached entry that blocks requests (caching mode, VT-d 6.1).
public struct CachedRefusal: Hashable, Sendable {
  public enum Place: Hashable, Sendable {
    case context
    case pasid(UInt32)
    /// A second-stage page, given by the address of the request.
    case page(UInt64, domain: UInt16, write: Bool)
  }

  public let place: Place
  public let reason: FaultReason

  var address: UInt64 { if case .page(let address, _, _) = place { address } else { 0 } }
}

/// The caches of one port, which serves a function's requests without PASID or with one PASID.
public struct PortCache: Hashable, Sendable {
  public let source: RequesterID
  /// The PASID that the port's requests carry.
  public let requestPASID: UInt32?
  /// Whether a scalable-mode context entry is cached.
  public let hasContext: Bool
  /// From the cached context entry (legacy) or PASID-table entry (scalable). Nil where none is cached.
  public let roots: TableRoots?
  /// The PASID whose entry defines `roots`.
  public let pasid: UInt32
  /// Ordered by address.
  public let pages: [CachedPage]
  public let refusals: [CachedRefusal]
}

/// The IOTLB of a remote datapath that acts for a function. Its mappings are in the remote; the unit knows only their
/// tags.
public struct RemoteCache: Hashable, Sendable {
  public enum Contents: Hashable, Sendable {
    case empty
    /// Mappings made while translation was disabled.
    case untranslated
    case domain(UInt16, pasid: UInt32, isPassThrough: Bool)
    /// Mappings of several domains, PASIDs or source IDs.
    case mixed
  }

  public let source: RequesterID
  /// The mappings that the remote may hold.
  public let contents: Contents
  public let misses: UInt64
  public let mappings: UInt64
  public let invalidations: UInt64
}

extension RemoteCache.Contents {
  init(_ contents: RemoteContents) {
    self =
      if contents.isMixed {
        .mixed
      } else if let tag = contents.tag {
        tag.domain.map { .domain($0, pasid: tag.pasid, isPassThrough: tag.stages == nil) } ?? .untranslated
      } else {
        .empty
      }
  }
}

/// An entry of the interrupt entry cache.
public struct CachedInterruptEntry: Hashable, Sendable {
  public let index: Int
  public let low: UInt64
  public let high: UInt64
}

extension PortTranslation {
  var inspection: PortCache {
    PortCache(
      source: source, requestPASID: requestPASID, hasContext: context != nil, roots: TableRoots(path),
      pasid: pathPASID, pages: iotlb.pages.sorted { ($0.input, $0.size) < ($1.input, $1.size) },
      refusals: refusals)
  }
}
