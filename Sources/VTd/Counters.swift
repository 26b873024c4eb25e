// How often the unit did what: for `info iommu`, the demo's summary and the tests.

/// Counts since the unit was made. A reset of the machine does not clear them.
public struct TranslationCounters: Hashable, Sendable {
  /// Requests answered from a port's IOTLB.
  public var iotlbHits: UInt64 = 0
  /// Requests that had to be walked.
  public var iotlbMisses: UInt64 = 0
  /// Requests that a context entry or PASID-table entry passes through untranslated.
  public var passThroughRequests: UInt64 = 0
  /// Requests made while translation was disabled.
  public var untranslatedRequests: UInt64 = 0
  /// Walks of first-stage tables alone (PGTT 001).
  public var firstStageWalks: UInt64 = 0
  /// Walks of second-stage tables alone (legacy, PGTT 010).
  public var secondStageWalks: UInt64 = 0
  /// Walks of first-stage tables through second-stage ones (PGTT 011).
  public var nestedWalks: UInt64 = 0
  /// Root and context entries read, from the root table on.
  public var contextWalks: UInt64 = 0
  /// PASID directory and table entries read.
  public var pasidWalks: UInt64 = 0
  /// DMA requests refused, suppressed and unrecorded ones included.
  public var faults: UInt64 = 0
  /// Invalidations asked for, whether or not anything was cached.
  public var contextInvalidations: UInt64 = 0
  public var pasidCacheInvalidations: UInt64 = 0
  /// By domain or globally, and by second-stage page.
  public var iotlbInvalidations: UInt64 = 0
  /// By PASID, whole or by page.
  public var pasidIOTLBInvalidations: UInt64 = 0
  public var deviceTLBInvalidations: UInt64 = 0
  /// ATS translation requests, however they were answered.
  public var translationRequests: UInt64 = 0
  /// Requests with a translated address, refused ones included.
  public var translatedRequests: UInt64 = 0
  /// Page requests, whether queued or not.
  public var pageRequests: UInt64 = 0
  public var interruptEntryInvalidations: UInt64 = 0
  /// Writes of the invalidation queue's tail.
  public var doorbells: UInt64 = 0
  /// Invalidation wait descriptors completed.
  public var waits: UInt64 = 0
  /// Interrupt requests that an interrupt remapping table entry answered. Here and below, a request counts when it is
  /// made, not when a route for it is worked out. Those of a passed-through device go from the host's VFIO to its KVM
  /// without Nestling between, and are not counted.
  public var interruptsRemapped: UInt64 = 0
  /// Interrupt requests passed as they were: remapping disabled, or compatibility format allowed.
  public var interruptsPassed: UInt64 = 0
  /// Interrupt requests refused.
  public var interruptsBlocked: UInt64 = 0
  /// Interrupt remapping table entries read from memory.
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
