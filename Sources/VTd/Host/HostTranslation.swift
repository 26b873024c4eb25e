// The interface to a host whose IOMMU translates the requests of a passed-through function. The unit never sees these
// requests, so it passes the binding from its tables and each invalidation to the host. `Machine` implements the
// interface with iommufd.

/// One passed-through function, behind this unit and behind the host's IOMMU.
///
/// `HostBindings` makes one call at a time and waits for it: on the thread of the vCPU that invalidates or resets, or
/// on the thread that calls `HostBindings.add` or `renew`.
public protocol HostTranslation: AnyObject, Sendable {
  /// Width in bits of the PASIDs that the host can bind for the function; 0 if it binds none. Does not change.
  var pasidWidth: Int { get }

  /// Binds the function's requests. After the return, the requests use `binding` and nothing else, and the host may
  /// release the previous binding. The host releases a first stage when the last reference to its object is dropped.
  /// - Parameter pasid: selects the requests with this PASID, which is not 0 and fits `pasidWidth`; nil selects those
  ///   without. The host refuses requests with a PASID that was never bound.
  /// - Returns: the host's object for a first stage, the same for all functions that share the table; otherwise nil.
  /// - Throws: the host refused the binding. The previous binding may persist, also if `.blocked` is refused.
  func bind(_ pasid: UInt32?, to binding: HostBinding) throws(HostRefusal) -> (any HostFirstStage)?
}

/// A first-stage table of the guest that the host's IOMMU walks, for one function or more.
public protocol HostFirstStage: AnyObject, Sendable {
  /// Removes mappings from the caches of the host's IOMMU and from device TLBs. On return, none of them is cached.
  /// - Parameter invalidations: in the guest's order, not empty. One system call should pass all of them.
  func invalidate(_ invalidations: [FirstStageInvalidation]) throws(HostRefusal)
}

/// The host refused a call. The implementation of `HostTranslation` reports the host's reason.
public struct HostRefusal: Error, Hashable, Sendable {
  public init() {}
}

/// The destination of a passed-through function's requests.
public enum HostBinding: Hashable, Sendable {
  /// The guest's physical addresses: translation is disabled, or the entry passes requests through.
  case secondStage
  /// The guest's first stage (PGTT 001), nested on the guest's physical memory.
  case firstStage(GuestFirstStage)
  /// No destination: the host blocks each request.
  case blocked(BlockReason)

  public enum BlockReason: Hashable, Sendable {
    /// The tables have a fault, which an emulated function's requests would meet, too.
    case entry(FaultReason)
    /// The guest uses a second stage, alone or nested. The host would need a shadow copy of it, which Nestling does not
    /// keep.
    case guestSecondStage
    /// Requests without PASID have supervisor privilege (RID_PRIV), which no host offers.
    case supervisorRequests
    /// The function already uses as many PASIDs as are bound for one function.
    case tooManyPASIDs
    /// The host refused the binding from the tables.
    case refused
  }
}

/// A first-stage table, as a PASID-table entry describes it (VT-d 9.6). Functions and PASIDs with equal values can share
/// one table on the host, because the same invalidations select it.
public struct GuestFirstStage: Hashable, Sendable {
  /// FSPTPTR: a guest physical address.
  public var root: UInt64
  /// 4 or 5.
  public var levels: Int
  /// SRE.
  public var supervisorRequestEnable = false
  /// WPE.
  public var writeProtectEnable = false
  /// EAFE.
  public var extendedAccessedFlagEnable = false
  /// DID: invalidations select the table by DID and PASID.
  public var domain: UInt16
  /// The PASID of the entry.
  public var pasid: UInt32

  public init(root: UInt64, levels: Int, domain: UInt16, pasid: UInt32) {
    self.root = root
    self.levels = levels
    self.domain = domain
    self.pasid = pasid
  }

  /// Width of input addresses: 48 or 57.
  public var addressWidth: Int { 12 + 9 * levels }
}

/// First-stage mappings that the guest invalidated.
public struct FirstStageInvalidation: Hashable, Sendable {
  /// Aligned to 4 KiB.
  public var address: UInt64
  /// In 4 KiB pages. `.max` with address 0 means all of them.
  public var pageCount: UInt64
  /// Whether paging-structure entries above the leaves may stay cached (IH).
  public var leafOnly: Bool
}

extension FirstStageInvalidation {
  public init(_ pages: PageRange, leafOnly: Bool) {
    guard pages.last - pages.first < .max else {
      self = .all
      return
    }
    self.init(address: pages.first, pageCount: (pages.last - pages.first) >> 12 + 1, leafOnly: leafOnly)
  }

  public static let all = FirstStageInvalidation(address: 0, pageCount: .max, leafOnly: false)

  /// Whether this invalidation removes all leaves of `other`.
  func covers(_ other: FirstStageInvalidation) -> Bool {
    guard other.address >= address else { return false }
    let skipped = (other.address - address) >> 12
    return skipped <= pageCount && other.pageCount <= pageCount - skipped
  }
}
