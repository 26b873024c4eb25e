import Hardware

/// The port of translated requests. Their addresses are already physical. The unit checks only that the function's
/// context entry permits translated requests, and that the address is outside the interrupt range (VT-d 4.2).
final class ATSTranslatedPort: DMAPort {
  let memory: any PhysicalMemory
  private let unit: RemappingUnit
  private let requester: Requester
  /// An ordinary port that is registered with the unit. Only its `inFlight` is used: it counts the translated requests,
  /// so an invalidation waits for them.
  private let anchor: any DMAPort

  init(unit: RemappingUnit, requester: Requester, anchor: any DMAPort) {
    self.unit = unit
    self.requester = requester
    self.anchor = anchor
    memory = unit.memory
  }

  var inFlight: RequestsInFlight { anchor.inFlight }

  func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    guard requester.busMasterEnable else { throw .disabled }
    guard unit.accepts(translated: address, for: access, from: requester.id) else { throw .translation }
    // The segment ends with the page, so that the next page is checked separately.
    return PhysicalSegment(address: address, count: min(count, 0x1000 - Int(address & 0xfff)))
  }

  func noteUnclaimed() { requester.receiveMasterAbort() }
}

extension SourceLookup {
  /// Throws if the context entry does not permit translated requests, or if the address is in the interrupt range.
  mutating func checkTranslated(_ address: UInt64) throws(FaultReason) {
    _ = try context(for: .translated, pasid: nil)
    if WalkRules.isInterruptAddress(address) { throw mode.interruptAddressFault }
  }
}

extension RemappingUnit {
  /// Returns whether a translated request may proceed. If not, records the fault.
  func accepts(translated address: UInt64, for access: DMAAccess, from source: RequesterID) -> Bool {
    let mode = ports.withLock { $0.mode }
    devices.withLock { $0.counters.count(.translatedRequests) }
    guard mode.enabled else { return false }
    var lookup = lookup(source, in: mode)
    do throws(FaultReason) {
      try lookup.checkTranslated(address)
      return true
    } catch {
      record(
        error, lookup, from: source, address: address, isRead: !access.contains(.write), prefix: nil,
        type: .translated)
      return false
    }
  }
}
