import Hardware

// Primary fault logging (VT-d 7.2): a blocked request fills the next fault recording register. The first condition that
// becomes set in FSTS raises the fault event.

/// The type of a request: its Address Type (AT) or, for a page request, T2 without T1 in the record.
enum RequestType: UInt64, Sendable {
  case untranslated = 0
  case translationRequest = 1
  case translated = 2
  case pageRequest = 3
}

/// The contents of a fault recording register.
struct FaultRecord: Hashable, Sendable {
  var reason: FaultReason
  var source: RequesterID
  /// The address of the request. For an interrupt request: its index, in bits 63:48.
  var information: UInt64
  /// Whether the request is a read (T1). Not used for interrupt requests and page requests.
  var isRead = false
  /// The request's PASID (PV). Nil for a request without PASID; then the record has PP clear.
  var pasid: UInt32?
  var isPrivileged = false
  var executes = false
  var type = RequestType.untranslated
}

extension UnitRegisters {
  private func recordOffset(_ index: Int) -> Int { RegisterOffset.faultRecord + 16 * index }

  private func isPending(_ index: Int) -> Bool { file[quadword: recordOffset(index) + 8][bit: 63] }

  func isFaultRecordUpperWord(_ offset: Int) -> Bool {
    let distance = offset - RegisterOffset.faultRecord
    return distance >= 0 && distance < 16 * Capabilities.faultRecordCount && distance % 16 == 12
  }

  /// Records a fault. Drops the fault after an overflow, and while another fault of the same source is pending (allowed
  /// by VT-d 7.2.1).
  mutating func record(_ fault: FaultRecord, _ effects: inout Effects) {
    guard !faultStatus.contains(.primaryFaultOverflow) else { return }
    for index in 0..<Capabilities.faultRecordCount
    where isPending(index)
      && UInt16(truncatingIfNeeded: file[quadword: recordOffset(index) + 8]) == fault.source.rawValue
    {
      return
    }
    let index = nextFaultRecord
    guard !isPending(index) else {
      raise(.primaryFaultOverflow, &effects)
      return
    }
    var upper = UInt64(fault.source.rawValue)
    if let pasid = fault.pasid {
      upper[bit: 31] = true  // PP
      upper[bits: 40...59] = UInt64(pasid)  // PV
      upper[bit: 29] = fault.isPrivileged  // PRIV
      upper[bit: 30] = fault.executes  // EXE
    }
    // {T1,T2}: 00b a write, 01b a page request, 10b a read, 11b an AtomicOp (VT-d 11.4.7.6).
    if fault.type == .pageRequest {
      upper[bit: 28] = true  // T2
    } else {
      upper[bits: 60...61] = fault.type.rawValue  // AT
      upper[bit: 62] = fault.isRead  // T1
    }
    upper[bits: 32...39] = UInt64(fault.reason.rawValue)  // FR
    upper[bit: 63] = true  // F
    file[quadword: recordOffset(index)] = fault.information & ~0xfff
    file[quadword: recordOffset(index) + 8] = upper
    if !faultStatus.contains(.primaryPendingFault) {
      file[doubleword: RegisterOffset.faultStatus][bits: 8...15] = UInt32(truncatingIfNeeded: index)  // FRI
    }
    nextFaultRecord = (index + 1) % Capabilities.faultRecordCount
    raise(.primaryPendingFault, &effects)
  }

  /// Sets a condition. Only the first condition raises the event; when software handles it, it finds the later ones.
  mutating func raise(_ condition: FaultStatus, _ effects: inout Effects) {
    let before = faultStatus
    faultStatus = before.union(condition)
    if before.isEmpty, let message = signal(.fault) { effects.faultEvent = message }
  }

  /// Handles a write by software that clears F in a record.
  mutating func faultRecordCleared() {
    if !(0..<Capabilities.faultRecordCount).contains(where: isPending) {
      faultStatus.remove(.primaryPendingFault)
      clearServicedFaultEvent()
    }
  }

  /// Drops a pending event once all its conditions are clear.
  mutating func clearServicedFaultEvent() {
    if faultStatus.isEmpty { file[doubleword: EventRegisters.fault.control][bit: 30] = false }
  }
}

extension RemappingUnit {
  /// Records the fault of an ATS request or a page request, unless FPD in an entry that was read suppresses the record.
  func record(
    _ reason: FaultReason, _ lookup: SourceLookup, from source: RequesterID, address: UInt64, isRead: Bool,
    prefix: PASIDPrefix?, type: RequestType
  ) {
    let isSuppressed = reason.isQualified && lookup.faultProcessingDisabled
    trace?.record(
      .faulted,
      [
        .source(source), .hex("fault", reason.rawValue), .hex("addr", address), .flag("write", !isRead),
        .flag("suppressed", isSuppressed),
      ] + (prefix.map { [.hex("pasid", $0.pasid)] } ?? []))
    if isSuppressed { return }
    registers.record(
      FaultRecord(
        reason: reason, source: source, information: address, isRead: isRead, pasid: prefix?.pasid,
        isPrivileged: prefix?.isPrivileged ?? false, executes: prefix?.executes ?? false, type: type))
  }
}
