// The unit's event counters, for `info iommu`, the demo's summary and the tests.

/// Counts since the creation of the unit. A reset of the machine does not clear them.
public struct TranslationCounters: Hashable, Sendable {
  /// Requests that hit a port's IOTLB.
  public var iotlbHits: UInt64 = 0
  /// Requests that needed a walk.
  public var iotlbMisses: UInt64 = 0
  /// Requests that a context entry or PASID-table entry passes through untranslated.
  public var passThroughRequests: UInt64 = 0
  /// Requests made while translation was disabled.
  public var untranslatedRequests: UInt64 = 0
  /// Walks of first-stage tables alone (PGTT 001).
  public var firstStageWalks: UInt64 = 0
  /// Walks of second-stage tables alone (legacy, PGTT 010).
  public var secondStageWalks: UInt64 = 0
  /// Walks of nested translation (PGTT 011).
  public var nestedWalks: UInt64 = 0
  /// Reads of a root entry and its context entry.
  public var contextWalks: UInt64 = 0
  /// Reads of a PASID directory entry and its PASID-table entry.
  public var pasidWalks: UInt64 = 0
  /// Blocked DMA requests, including those whose fault was suppressed or not recorded.
  public var faults: UInt64 = 0
  /// Requested invalidations, whether or not they matched a cached entry.
  public var contextInvalidations: UInt64 = 0
  public var pasidCacheInvalidations: UInt64 = 0
  /// Global, by domain and by second-stage page.
  public var iotlbInvalidations: UInt64 = 0
  /// By PASID: all of its mappings or some pages.
  public var pasidIOTLBInvalidations: UInt64 = 0
  public var deviceTLBInvalidations: UInt64 = 0
  /// ATS translation requests, whatever their answer.
  public var translationRequests: UInt64 = 0
  /// Requests with a translated address, including blocked ones.
  public var translatedRequests: UInt64 = 0
  /// Page requests, including those that did not enter the queue.
  public var pageRequests: UInt64 = 0
  public var interruptEntryInvalidations: UInt64 = 0
  /// Writes to the invalidation queue's tail register.
  public var doorbells: UInt64 = 0
  /// Completed invalidation wait descriptors.
  public var waits: UInt64 = 0
  /// Interrupt requests remapped by an interrupt remapping table entry. This counter and the next two count requests,
  /// not computed routes. Interrupts of a passed-through device go from the host's VFIO directly to its KVM and are not
  /// counted.
  public var interruptsRemapped: UInt64 = 0
  /// Interrupt requests passed unchanged: remapping is disabled, or compatibility format is allowed.
  public var interruptsPassed: UInt64 = 0
  /// Blocked interrupt requests.
  public var interruptsBlocked: UInt64 = 0
  /// Reads of interrupt remapping table entries from memory.
  public var interruptEntryReads: UInt64 = 0

  public init() {}

  static func += (sum: inout TranslationCounters, more: TranslationCounters) {
    sum.iotlbHits &+= more.iotlbHits
    sum.iotlbMisses &+= more.iotlbMisses
    sum.passThroughRequests &+= more.passThroughRequests
    sum.untranslatedRequests &+= more.untranslatedRequests
    sum.firstStageWalks &+= more.firstStageWalks
    sum.secondStageWalks &+= more.secondStageWalks
    sum.nestedWalks &+= more.nestedWalks
    sum.contextWalks &+= more.contextWalks
    sum.pasidWalks &+= more.pasidWalks
    sum.faults &+= more.faults
    sum.contextInvalidations &+= more.contextInvalidations
    sum.pasidCacheInvalidations &+= more.pasidCacheInvalidations
    sum.iotlbInvalidations &+= more.iotlbInvalidations
    sum.pasidIOTLBInvalidations &+= more.pasidIOTLBInvalidations
    sum.deviceTLBInvalidations &+= more.deviceTLBInvalidations
    sum.translationRequests &+= more.translationRequests
    sum.translatedRequests &+= more.translatedRequests
    sum.pageRequests &+= more.pageRequests
    sum.interruptEntryInvalidations &+= more.interruptEntryInvalidations
    sum.doorbells &+= more.doorbells
    sum.waits &+= more.waits
    sum.interruptsRemapped &+= more.interruptsRemapped
    sum.interruptsPassed &+= more.interruptsPassed
    sum.interruptsBlocked &+= more.interruptsBlocked
    sum.interruptEntryReads &+= more.interruptEntryReads
  }
}
