// The unit's event counters, for `info iommu`, the demo's summary and the tests.

/// The counters of a unit, in the order in which `info iommu` prints them.
public enum TranslationCounter: Int, CaseIterable, Sendable {
  /// Requests that hit a port's IOTLB.
  case iotlbHits
  /// Requests that needed a walk.
  case iotlbMisses
  /// Walks of first-stage tables alone (PGTT 001).
  case firstStageWalks
  /// Walks of second-stage tables alone (legacy, PGTT 010).
  case secondStageWalks
  /// Walks of nested translation (PGTT 011).
  case nestedWalks
  /// Requests that a context entry or PASID-table entry passes through untranslated.
  case passThroughRequests
  /// Requests made while translation was disabled.
  case untranslatedRequests
  /// Reads of a root entry and its context entry.
  case contextWalks
  /// Reads of a PASID directory entry and its PASID-table entry.
  case pasidWalks
  /// Requested context-cache invalidations. Each invalidation counts, whether or not an entry matched.
  case contextInvalidations
  case pasidCacheInvalidations
  /// Global, by domain and by second-stage page.
  case iotlbInvalidations
  /// By PASID: all of its mappings or some pages.
  case pasidIOTLBInvalidations
  case deviceTLBInvalidations
  /// ATS translation requests with any answer.
  case translationRequests
  /// Requests with a translated address, including blocked ones.
  case translatedRequests
  /// Page requests, including those that did not enter the queue.
  case pageRequests
  /// Misses of remote IOTLBs, those that got no mapping included.
  case remoteMisses
  /// Mappings that remote IOTLBs got.
  case remoteMappings
  /// Invalidations that remote IOTLBs got. Each may have several ranges.
  case remoteInvalidations
  case interruptEntryInvalidations
  /// Writes to the invalidation queue's tail register.
  case doorbells
  /// Completed invalidation wait descriptors.
  case waits
  /// Interrupt requests remapped by an interrupt remapping table entry. This counter and the next two count interrupt
  /// requests, not the computation of routes for KVM. They do not count interrupts of a passed-through device, because
  /// the host's VFIO sends them directly to its KVM.
  case interruptsRemapped
  /// Interrupt requests passed unchanged: remapping is disabled, or compatibility format is allowed.
  case interruptsPassed
  /// Blocked interrupt requests.
  case interruptsBlocked
  /// Reads of interrupt remapping table entries from memory.
  case interruptEntryReads
  /// Blocked DMA requests, including those whose fault was suppressed or not recorded.
  case faults
}

/// The counts since the unit was created. A reset of the machine does not clear them.
public struct TranslationCounters: Hashable, Sendable {
  /// One element for each counter; the rest is unused.
  private var values = InlineArray<32, UInt64>(repeating: 0)

  public init() {}

  @inline(__always)
  public internal(set) subscript(counter: TranslationCounter) -> UInt64 {
    get { values[counter.rawValue] }
    set { values[counter.rawValue] = newValue }
  }

  @inline(__always)
  mutating func count(_ counter: TranslationCounter) { values[counter.rawValue] &+= 1 }

  static func += (sum: inout TranslationCounters, more: TranslationCounters) {
    for index in sum.values.indices { sum.values[index] &+= more.values[index] }
  }

  public static func == (one: TranslationCounters, other: TranslationCounters) -> Bool {
    TranslationCounter.allCases.allSatisfy { one[$0] == other[$0] }
  }

  public func hash(into hasher: inout Hasher) {
    for counter in TranslationCounter.allCases { hasher.combine(self[counter]) }
  }
}
