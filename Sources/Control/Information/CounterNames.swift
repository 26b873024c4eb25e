import VTd

extension TranslationCounter {
  /// The counter's name in `info iommu`.
  var name: String {
    switch self {
    case .iotlbHits: "IOTLB hits"
    case .iotlbMisses: "IOTLB misses"
    case .firstStageWalks: "first-stage walks"
    case .secondStageWalks: "second-stage walks"
    case .nestedWalks: "nested walks"
    case .passThroughRequests: "pass-through requests"
    case .untranslatedRequests: "untranslated requests"
    case .contextWalks: "context walks"
    case .pasidWalks: "PASID walks"
    case .contextInvalidations: "context invalidations"
    case .pasidCacheInvalidations: "PASID-cache invalidations"
    case .iotlbInvalidations: "IOTLB invalidations"
    case .pasidIOTLBInvalidations: "PASID-based IOTLB invalidations"
    case .deviceTLBInvalidations: "device-TLB invalidations"
    case .translationRequests: "translation requests"
    case .translatedRequests: "translated requests"
    case .pageRequests: "page requests"
    case .remoteMisses: "remote IOTLB misses"
    case .remoteMappings: "remote IOTLB mappings"
    case .remoteInvalidations: "remote IOTLB invalidations"
    case .interruptEntryInvalidations: "interrupt entry invalidations"
    case .doorbells: "invalidation queue doorbells"
    case .waits: "invalidation waits"
    case .interruptsRemapped: "interrupts remapped"
    case .interruptsPassed: "interrupts passed"
    case .interruptsBlocked: "interrupts blocked"
    case .interruptEntryReads: "interrupt entry reads"
    case .faults: "DMA faults"
    }
  }
}

extension TranslationCounters {
  var named: [(name: String, value: UInt64)] { TranslationCounter.allCases.map { ($0.name, self[$0]) } }
}

extension HostBindings.Counters {
  var named: [(name: String, value: UInt64)] {
    [
      ("host bindings", bindings),
      ("host refusals", refusals),
      ("host invalidation calls", invalidationCalls),
      ("host invalidations", invalidations),
    ]
  }
}
