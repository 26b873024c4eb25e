import Hardware

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
  /// A scalable-mode context entry is cached.
  public let hasContext: Bool
  /// From the cached context entry (legacy) or PASID-table entry (scalable). Nil where none is cached.
  public let roots: TableRoots?
  /// The PASID whose entry defines `roots`.
  public let pasid: UInt32
  /// Ordered by address.
  public let pages: [CachedPage]
  public let refusals: [CachedRefusal]
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
