import Hardware

/// The translation cache (ATC) of `dma-engine`. It keeps translations from ATS until an invalidate request or a newer
/// entry removes them. A plain value; the engine adds the lock.
struct DMAEngineCache: Sendable {
  struct Entry: Hashable, Sendable {
    /// The page's first address, untranslated.
    var page: UInt64
    /// The PASID of the requests that use the entry; nil for requests without PASID.
    var pasid: UInt32?
    var isPrivileged: Bool
    var translation: DeviceTranslation

    var last: UInt64 { page | .lowBits(translation.shift) }
  }

  static let capacity = 64

  private(set) var entries: [Entry] = []
  private var victim = 0
  /// Changes with each invalidation. A translation requested in an earlier epoch must be neither cached nor used.
  private(set) var epoch: UInt64 = 0

  init() { entries.reserveCapacity(Self.capacity) }

  /// Returns the cached translation of an address.
  func lookup(_ address: UInt64, prefix: PASIDPrefix?) -> DeviceTranslation? {
    entries.first { entry in
      entry.page <= address && address <= entry.last && entry.pasid == prefix?.pasid
        && entry.isPrivileged == (prefix?.isPrivileged ?? false)
    }?.translation
  }

  /// Inserts a translation that was requested in `epoch`.
  /// - Returns: false, without insertion, if the translation is out of date or its size is invalid.
  mutating func insert(
    _ translation: DeviceTranslation, for address: UInt64, prefix: PASIDPrefix?, askedIn epoch: UInt64
  ) -> Bool {
    guard epoch == self.epoch, (12...63).contains(translation.shift) else { return false }
    let entry = Entry(
      page: address & ~.lowBits(translation.shift), pasid: prefix?.pasid,
      isPrivileged: prefix?.isPrivileged ?? false, translation: translation)
    entries.removeAll { old in
      old.page <= entry.last && entry.page <= old.last && old.pasid == entry.pasid
        && old.isPrivileged == entry.isPrivileged
    }
    if entries.count < Self.capacity {
      entries.append(entry)
    } else {
      entries[victim] = entry
      victim = (victim + 1) % Self.capacity
    }
    return true
  }

  mutating func invalidate(_ request: InvalidateRequest) {
    epoch &+= 1
    entries.removeAll { entry in
      (request.isGlobal && entry.pasid != nil || request.pasid == entry.pasid && !request.isGlobal)
        && entry.page <= request.last && request.first <= entry.last
    }
  }

  mutating func removeAll() {
    epoch &+= 1
    entries.removeAll(keepingCapacity: true)
    victim = 0
  }
}
