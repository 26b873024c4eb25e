// What the unit asks of a host whose own IOMMU translates the requests of a passed-through function: the unit never
// sees them, so it hands over what its tables say, and each invalidation. `Machine` answers over iommufd.

/// One passed-through function, behind this unit and behind the host's IOMMU.
///
/// Calls come one at a time, from the thread of the vCPU that invalidates or resets, or of whoever asked for a binding
/// anew (`HostBindings.renew`), which waits for them.
public protocol HostTranslation: AnyObject, Sendable {
  /// From its return on the function's requests go by `binding` and by nothing else. What it was bound to before
  /// may go as soon as that holds; its first stage does when nobody holds it any more.
  /// - Parameter pasid: which requests: those with this PASID; nil: those without.
  /// - Returns: for a first stage what stands for it on the host, the same object for every function that shares it.
  /// - Throws: the host refuses. What was bound before may be bound still. `.blocked` is not refused.
  func bind(_ pasid: UInt32?, to binding: HostBinding) throws(HostRefusal) -> (any HostFirstStage)?
}

/// A first-stage table of the guest that the host's IOMMU walks, for one function or more.
public protocol HostFirstStage: AnyObject, Sendable {
  /// When it returns, nothing of this is cached any more, by the host's IOMMU or behind it.
  /// - Parameter invalidations: in the guest's order, not empty; one call of the host is to do for all.
  func invalidate(_ invalidations: [FirstStageInvalidation]) throws(HostRefusal)
}

/// The host did not do what it was asked. What it said is for whoever asked it to tell.
public struct HostRefusal: Error, Hashable, Sendable {
  public init() {}
}

/// Where requests of a passed-through function go.
public enum HostBinding: Hashable, Sendable {
  /// Guest physical addresses: translation is disabled, or passes them through.
  case secondStage
  /// The guest's first stage (PGTT 001), on top of guest physical memory.
  case firstStage(GuestFirstStage)
  /// Nowhere: the host refuses each request.
  case blocked(BlockReason)

  public enum BlockReason: Hashable, Sendable {
    /// An emulated function's requests would meet this fault, too.
    case entry(FaultReason)
    /// The guest's own second stage, alone or nested: a host could follow it only by a copy, which nobody keeps.
    case guestSecondStage
    /// Requests without PASID with supervisor privilege (RID_PRIV), which no host offers.
    case supervisorRequests
    /// The host refused what the tables asked for.
    case refused
  }
}

/// A first-stage table as a PASID-table entry has it (VT-d 9.6). Two that are equal are invalidated together.
public struct GuestFirstStage: Hashable, Sendable {
  /// FSPTPTR: guest physical.
  public var root: UInt64
  /// 4 or 5.
  public var levels: Int
  /// SRE.
  public var supervisorRequestEnable = false
  /// WPE.
  public var writeProtectEnable = false
  /// EAFE.
  public var extendedAccessedFlagEnable = false
  /// DID: by it and the PASID its invalidations are told.
  public var domain: UInt16
  /// The PASID that the entry was found under.
  public var pasid: UInt32

  public init(root: UInt64, levels: Int, domain: UInt16, pasid: UInt32) {
    self.root = root
    self.levels = levels
    self.domain = domain
    self.pasid = pasid
  }

  /// Bits of an address that it translates: 48 or 57.
  public var addressWidth: Int { 12 + 9 * levels }
}

/// First-stage mappings that the guest took back.
public struct FirstStageInvalidation: Hashable, Sendable {
  /// Aligned to 4 KiB.
  public var address: UInt64
  /// In 4 KiB pages; `.max`, with address 0, for all of them.
  public var pageCount: UInt64
  /// Tables above the leaves may stay cached (IH).
  public var leafOnly: Bool

  public init(address: UInt64, pageCount: UInt64, leafOnly: Bool) {
    self.address = address
    self.pageCount = pageCount
    self.leafOnly = leafOnly
  }

  public init(_ pages: PageRange, leafOnly: Bool) {
    guard pages.last - pages.first < .max else {
      self = .all
      return
    }
    self.init(address: pages.first, pageCount: (pages.last - pages.first) >> 12 + 1, leafOnly: leafOnly)
  }

  public static let all = FirstStageInvalidation(address: 0, pageCount: .max, leafOnly: false)

  /// Whether nothing of another one's leaves is left after this.
  func covers(_ other: FirstStageInvalidation) -> Bool {
    guard other.address >= address else { return false }
    let skipped = (other.address - address) >> 12
    return skipped <= pageCount && other.pageCount <= pageCount - skipped
  }
}
