import Hardware

// The binding of a passed-through function's requests without PASID, or with one PASID, read from the unit's tables as
// for a request of an emulated function (VT-d 3.4). A fault that the host reports for a request of the function is
// recorded like the unit's own faults.

/// The binding that the tables define for a function's requests.
struct HostBindingLookup {
  let binding: HostBinding
  /// DID of the entry, also with pass-through. Nil if no valid entry exists.
  let domain: UInt16?
  /// The number of the PASID-table entry: that of the request, or RID_PASID. Nil if the context entry is not valid, or
  /// if the table mode is legacy.
  let pasid: UInt32?
  /// FPD of the entries read.
  let faultProcessingDisabled: Bool

  /// Reads the binding from the tables in memory, not from the caches.
  /// - Parameter pasid: the PASID of the requests, or nil for requests without PASID.
  init(
    of source: RequesterID, pasid: UInt32?, mode: TranslationMode, capabilities: Capabilities,
    memory: any PhysicalMemory
  ) {
    guard mode.enabled else {
      // An emulated function's request with a PASID would access its physical address, too. The host has no single table
      // for all PASIDs, so it blocks such requests.
      binding = pasid == nil ? .secondStage : .blocked(.entry(.pasidNotEnabled))
      (domain, self.pasid, faultProcessingDisabled) = (nil, pasid, false)
      return
    }
    var lookup = SourceLookup(mode, source: source, capabilities: capabilities, memory: memory)
    var number = pasid
    do throws(FaultReason) {
      let context = try lookup.context(for: .untranslated, pasid: pasid)
      if case .scalable(let entry) = context { number = pasid ?? entry.ridPASID(capabilities) }
      let resolved = try lookup.path(of: pasid, isPrivileged: false, in: context)
      binding = Self.binding(resolved)
      domain = resolved.path.domain
    } catch {
      binding = .blocked(.entry(error))
      domain = nil
    }
    self.pasid = number
    faultProcessingDisabled = lookup.faultProcessingDisabled
  }

  /// Whether the entries are present and valid, so that there is something to bind.
  var isPresent: Bool { if case .blocked(.entry) = binding { false } else { true } }

  private static func binding(_ resolved: ResolvedPath) -> HostBinding {
    switch resolved.path {
    case .passThrough: return .secondStage
    case .first(let table, let tag) where table.nested == nil:
      if table.isSupervisor { return .blocked(.supervisorRequests) }
      var stage = GuestFirstStage(root: table.root, levels: table.levels, domain: tag.domain, pasid: tag.pasid)
      stage.supervisorRequestEnable = resolved.pasidEntry?.supervisorRequestEnable ?? false
      stage.writeProtectEnable = table.writeProtect
      stage.extendedAccessedFlagEnable = table.extendedAccessed
      return .firstStage(stage)
    case .first, .second: return .blocked(.guestSecondStage)
    case .unknown: return .blocked(.refused)
    }
  }
}

/// A request of a passed-through function that the host blocked.
public struct HostFault: Hashable, Sendable {
  public var reason: FaultReason
  public var source: RequesterID
  public var pasid: UInt32?
  public var address: UInt64
  public var isRead: Bool
}

extension RemappingUnit {
  func hostBinding(for source: RequesterID, pasid: UInt32?) -> HostBindingLookup {
    HostBindingLookup(
      of: source, pasid: pasid, mode: registers.state.withLock { $0.translationMode }, capabilities: capabilities,
      memory: memory)
  }

  /// Records a fault like one of the unit's own, unless FPD of the function's entries suppresses it.
  public func recordHostFault(_ fault: HostFault) {
    if fault.reason.isQualified, hostBinding(for: fault.source, pasid: fault.pasid).faultProcessingDisabled { return }
    registers.record(
      FaultRecord(
        reason: fault.reason, source: fault.source, information: fault.address, isRead: fault.isRead,
        pasid: fault.pasid))
  }
}
