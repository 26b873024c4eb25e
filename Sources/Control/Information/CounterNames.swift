import VTd

extension TranslationCounters {
  /// All counters with their names for people.
  var named: [(name: String, value: UInt64)] {
    [
      ("IOTLB hits", iotlbHits),
      ("IOTLB misses", iotlbMisses),
      ("first-stage walks", firstStageWalks),
      ("second-stage walks", secondStageWalks),
      ("nested walks", nestedWalks),
      ("pass-through requests", passThroughRequests),
      ("untranslated requests", untranslatedRequests),
      ("context walks", contextWalks),
      ("PASID walks", pasidWalks),
      ("context invalidations", contextInvalidations),
      ("PASID-cache invalidations", pasidCacheInvalidations),
      ("IOTLB invalidations", iotlbInvalidations),
      ("PASID-based IOTLB invalidations", pasidIOTLBInvalidations),
      ("device-TLB invalidations", deviceTLBInvalidations),
      ("translation requests", translationRequests),
      ("translated requests", translatedRequests),
      ("page requests", pageRequests),
      ("interrupt entry invalidations", interruptEntryInvalidations),
      ("invalidation queue doorbells", doorbells),
      ("invalidation waits", waits),
      ("interrupts remapped", interruptsRemapped),
      ("interrupts passed", interruptsPassed),
      ("interrupts blocked", interruptsBlocked),
      ("interrupt entry reads", interruptEntryReads),
      ("DMA faults", faults),
    ]
  }
}

extension HostBindings.Counters {
  /// All counters with their names for people.
  var named: [(name: String, value: UInt64)] {
    [
      ("host bindings", bindings),
      ("host refusals", refusals),
      ("host invalidation calls", invalidationCalls),
      ("host invalidations", invalidations),
    ]
  }
}
