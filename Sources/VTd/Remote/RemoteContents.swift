import Hardware

// The tags of the mappings that a remote IOTLB may hold, and the part of them that an invalidation selects. The unit
// does not record each mapping: the remote may drop any of them, and an invalidation may remove more than necessary
// (VT-d 6.5).

struct RemoteContents: Sendable {
  /// The fields that select a mapping for invalidation. They are those of the entries that made the mapping.
  struct Tag: Hashable, Sendable {
    let source: RequesterID
    /// Nil if translation was disabled.
    let domain: UInt16?
    let pasid: UInt32
    /// Nil for pass-through, and if translation was disabled.
    let stages: IOTLB.Tag.Stages?
  }

  /// The part of the mappings that an invalidation removes.
  enum Loss: Hashable, Sendable {
    case nothing
    case pages(PageRange)
    case everything
  }

  /// The tag of all mappings, if they have the same; nil while the remote holds none.
  private(set) var tag: Tag?
  /// Whether the mappings have several tags. Then every invalidation removes all of them.
  private(set) var isMixed = false

  mutating func add(_ new: Tag) {
    if tag == nil { tag = new }
    if tag != new { isMixed = true }
  }

  mutating func removeAll() {
    tag = nil
    isMixed = false
  }

  /// Returns what an invalidation removes.
  /// - Parameters:
  ///   - source: the function's present source ID. Mappings made under another one are lost with every invalidation.
  ///   - isScalable: whether context entries have no domain.
  func loss(by invalidation: Invalidation, source: RequesterID, isScalable: Bool) -> Loss {
    guard let tag else { return .nothing }
    if isMixed || tag.source != source {
      switch invalidation {
      case .deviceTLB, .deviceTLBOfPASID, .interruptEntries, .interruptRemappingChanged: return .nothing
      default: return .everything
      }
    }
    func everything(if selects: Bool) -> Loss { selects ? .everything : .nothing }
    switch invalidation {
    case .allContexts, .allPASIDs, .allTranslations, .translationChanged:
      return .everything
    case .contextsOfDomain(let domain):
      return everything(if: isScalable || tag.domain == domain)
    case .contextsOfDevice(let device, let mask):
      return everything(if: mask.matches(device, source))
    case .pasidsOfDomain(let domain), .translationsOfDomain(let domain):
      return everything(if: tag.domain == domain)
    case .pasid(let pasid, let domain):
      return everything(if: tag.domain == domain && tag.pasid == pasid)
    case .pagesOfDomain(let domain, let pages, _):
      guard tag.domain == domain else { return .nothing }
      // The pages are second-stage input, which is the DMA address only without a first stage (6.5.2.3).
      return tag.stages == .second ? .pages(pages) : .everything
    case .translationsOfPASID(let pasid, let domain):
      return everything(if: tag.domain == domain && tag.pasid == pasid && tag.stages != .second)
    case .pagesOfPASID(let pasid, let domain, let pages, _):
      guard tag.domain == domain, tag.pasid == pasid, tag.stages != .second else { return .nothing }
      return .pages(pages)
    case .deviceTLB, .deviceTLBOfPASID, .interruptEntries, .interruptRemappingChanged:
      return .nothing
    }
  }
}

/// Ranges that a remote loses with its next invalidation.
struct QueuedRanges: Sendable {
  /// The most ranges of one invalidation. If there are more, the remote loses everything.
  static let limit = 16

  private(set) var ranges: [DMARange] = []

  mutating func add(_ range: DMARange) {
    if ranges.first == .all { return }
    if range == .all || ranges.count == Self.limit {
      ranges = [.all]
      return
    }
    // Consecutive invalidations often have adjacent pages.
    if let last = ranges.last, range.first <= last.last || range.first == last.last &+ 1, last.first <= range.last {
      ranges[ranges.count - 1] = DMARange(first: min(last.first, range.first), last: max(last.last, range.last))
    } else {
      ranges.append(range)
    }
  }

  /// Removes and returns the ranges.
  mutating func take() -> [DMARange] {
    defer { ranges = [] }
    return ranges
  }
}
