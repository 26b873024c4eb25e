import Hardware

// Caching mode (VT-d 6.1): the unit may also cache entries that are not present or invalid. Software must invalidate
// them after it makes them present. Without the invalidation, requests meet the same fault again.

extension FaultReason {
  /// The cache that keeps an entry that blocked a request.
  enum Cache: Sendable {
    /// The context cache. In legacy mode it keeps the entry under domain 0, regardless of DID (VT-d 6.2.2).
    case context
    /// The PASID cache. It keeps the entry under its PASID alone, because an entry that is not present has no domain.
    case pasid
    case iotlb
  }

  /// Returns the cache that keeps the fault's cause. Nil for faults of root entries, memory accesses and the request
  /// itself, and for faults that the first stage causes: a first-stage entry is cached only if it is present.
  /// - Parameter stages: the stages of the request's path, or nil if the fault occurred before the path was known.
  func cache(stages: IOTLB.Tag.Stages?) -> Cache? {
    switch self {
    case .contextEntryNotPresent, .contextEntryReserved, .contextEntryInvalid, .scalableContextEntryNotPresent,
      .scalableContextEntryReserved, .scalableContextEntryInvalid:
      .context
    case .pasidDirectoryEntryNotPresent, .pasidDirectoryEntryReserved, .pasidEntryNotPresent, .pasidEntryReserved,
      .pasidEntryInvalid:
      .pasid
    case .readPermission, .writePermission, .secondStageEntryReserved, .scalableSecondStageNotPresent,
      .scalableSecondStageEntryReserved, .firstStageRootReadPermission, .firstStageEntryReadPermission,
      .firstStageEntryWritePermission:
      .iotlb
    // In nested translation, this reason does not say which stage denied the access.
    case .scalableReadPermission, .scalableWritePermission:
      stages == .second ? .iotlb : nil
    default:
      nil
    }
  }
}

/// A cache of fixed size for the pages of a port that the second stage blocks. It is separate from the IOTLB, so that
/// an IOTLB hit is as fast as without caching mode.
struct NotPresentCache: Sendable {
  private struct Entry: Sendable {
    /// First address.
    var page: UInt64
    var tag: IOTLB.Tag
    var access: DMAAccess
    var reason: FaultReason
  }

  private static let count: UInt64 = 32
  private var entries = [Entry?](repeating: nil, count: Int(count))

  private static func place(of page: UInt64) -> Int {
    Int(truncatingIfNeeded: (page >> 12 ^ page >> 17) % count)
  }

  /// The cached faults, ordered by address.
  var inspection: [CachedRefusal] {
    entries.compactMap { $0 }.map {
      CachedRefusal(place: .page($0.page, domain: $0.tag.domain, write: $0.access.contains(.write)), reason: $0.reason)
    }.sorted { $0.address < $1.address }
  }

  func lookup(_ address: UInt64, tag: IOTLB.Tag, access: DMAAccess) -> FaultReason? {
    let page = address & ~0xfff
    guard let entry = entries[Self.place(of: page)], entry.page == page, entry.tag == tag,
      access.isSuperset(of: entry.access)
    else { return nil }
    return entry.reason
  }

  mutating func insert(_ reason: FaultReason, for address: UInt64, tag: IOTLB.Tag, access: DMAAccess) {
    let page = address & ~0xfff
    entries[Self.place(of: page)] = Entry(page: page, tag: tag, access: access, reason: reason)
  }

  mutating func removeAll() { removeAll { _ in true } }

  /// Removes the entries whose page is in `range`.
  mutating func removeAll(
    in range: PageRange = PageRange(address: 0, addressMask: 52), where matches: (IOTLB.Tag) -> Bool
  ) {
    for index in entries.indices {
      if let entry = entries[index], range.overlaps(first: entry.page, last: entry.page | 0xfff), matches(entry.tag) {
        entries[index] = nil
      }
    }
  }
}
