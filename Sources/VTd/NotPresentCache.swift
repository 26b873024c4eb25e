import Hardware

// What caching mode adds to the caches (VT-d 6.1): entries that are not present or wrong may be kept too, until
// software, which made them present, invalidates them. A driver that forgets to sees the fault again.

extension FaultReason {
  /// The cache that keeps an entry for which a request was refused.
  enum Cache: Sendable {
    /// In legacy mode under domain 0, whatever the entry said (6.2.2).
    case context
    /// Under its PASID, and no domain: an entry that is not present has none.
    case pasid
    case iotlb
  }

  /// nil where nothing is kept: the fault is about a root entry, about an access of memory, about the request
  /// itself, or about the first stage, whose entries that are not present are never cached.
  /// - Parameter stages: that the request went through, where it came so far.
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
    // Nested, it does not say whose permission was missing.
    case .scalableReadPermission, .scalableWritePermission:
      stages == .second ? .iotlb : nil
    default:
      nil
    }
  }
}

/// The pages of a port's IOTLB that second stage does not let requests to. Of fixed size; apart from the pages that
/// it does, so that those are found as fast as without caching mode.
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

  /// What is kept now, by address.
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

  /// Removes the entries whose page is in the range.
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
