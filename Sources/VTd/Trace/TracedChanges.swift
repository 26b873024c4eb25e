import Hardware

// Trace events of invalidations and of changes of Global Status.

extension Trace {
  func record(_ invalidation: Invalidation) {
    switch invalidation {
    case .allContexts: record(.invalidateAllContexts, [])
    case .contextsOfDomain(let domain): record(.invalidateDomainContexts, [.hex("domain", domain)])
    case .contextsOfDevice(let device, let mask):
      record(.invalidateDeviceContexts, [.source(device), .hex("fmask", ~mask.significantBits)])
    case .allPASIDs: record(.invalidateAllPASIDs, [])
    case .pasidsOfDomain(let domain): record(.invalidateDomainPASIDs, [.hex("domain", domain)])
    case .pasid(let pasid, let domain): record(.invalidatePASID, [.hex("domain", domain), .hex("pasid", pasid)])
    case .allTranslations: record(.invalidateAllTranslations, [])
    case .translationsOfDomain(let domain): record(.invalidateDomainTranslations, [.hex("domain", domain)])
    case .pagesOfDomain(let domain, let pages, let leafOnly):
      record(
        .invalidateDomainPages,
        [.hex("domain", domain), .hex("addr", pages.first), .hex("last", pages.last), .flag("ih", leafOnly)])
    case .translationsOfPASID(let pasid, let domain):
      record(.invalidatePASIDTranslations, [.hex("domain", domain), .hex("pasid", pasid)])
    case .pagesOfPASID(let pasid, let domain, let pages, let leafOnly):
      record(
        .invalidatePASIDPages,
        [
          .hex("domain", domain), .hex("addr", pages.first), .hex("last", pages.last), .hex("pasid", pasid),
          .flag("ih", leafOnly),
        ])
    case .deviceTLB(let device, let pages):
      record(.invalidateDeviceTLB, [.source(device), .hex("addr", pages.first), .hex("last", pages.last)])
    case .deviceTLBOfPASID(let device, let pasid, let pages):
      record(
        .invalidateDeviceTLB,
        [.source(device), .hex("addr", pages.first), .hex("last", pages.last)]
          + (pasid.map { [.hex("pasid", $0)] } ?? [.word("pasid", "all")]))
    case .interruptEntries(let indices):
      record(
        .invalidateInterruptEntries, [.number("index", indices.lowerBound), .number("last", indices.upperBound)])
    case .translationChanged, .interruptRemappingChanged: break
    }
  }

  /// Records the changes that a register write made.
  /// - Parameter before: the state in force before the write.
  func record(_ registers: UnitRegisters, before: GlobalCommand, _ effects: UnitRegisters.Effects) {
    let now = registers.globalStatus
    let changed = now.symmetricDifference(before)
    if effects.rootTableSet {
      let mode = registers.translationMode
      record(.rootTableSet, [.hex("addr", mode.rootTable), .flag("scalable", mode.tableMode == .scalable)])
    }
    if changed.contains(.translationEnable) {
      record(.translationEnabled, [.flag("enable", now.contains(.translationEnable))])
    }
    if changed.contains(.queuedInvalidationEnable) {
      record(
        .queueEnabled,
        [
          .flag("enable", now.contains(.queuedInvalidationEnable)), .hex("addr", registers.queue.base),
          .number("size", registers.queue.size),
        ])
    }
    if effects.interruptRemappingChanged {
      let mode = registers.interruptMode
      record(.interruptTableSet, [.hex("addr", mode.table), .number("size", mode.entries)])
      record(.interruptRemappingEnabled, [.flag("enable", mode.enabled)])
    }
  }
}
