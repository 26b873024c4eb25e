import Hardware

// Requests to execute (VT-d 3.6.1): reads whose PASID prefix has Execute Requested. A second pass over the first
// stage's entries checks the execute permission. It is separate from the walk, so that plain reads do not pay for it.

extension FirstStageTable {
  /// Checks that instructions may be fetched from a page that a walk has found readable.
  /// - Throws: SPT.5 without ERE, SGN.3 where an entry or SMEP forbids execution, SFS.3 for XD without NXE.
  func checkExecute(_ input: UInt64, rules: WalkRules, memory: any PhysicalMemory) throws(FaultReason) {
    guard controls.contains(.executeRequests) else { throw .executeRequestNotEnabled }
    var table = root
    var isUser = true
    var isDisabled = false
    for level in (1...levels).reversed() {
      let shift = UInt64(truncatingIfNeeded: 3 &+ 9 &* level)
      let place = table | (input &>> shift & 0x1ff) &<< 3
      let address = try nested?.walk(place, for: .read, rules: rules, memory: memory).address(of: place) ?? place
      // The walk has just read this entry. The next request detects a change since then.
      guard let entry = memory.loadUInt64(at: address) else { throw .firstStageEntryAccess }
      guard entry & FirstStageEntry.present != 0 else { throw .firstStageEntryNotPresent }
      if entry & FirstStageEntry.executeDisable != 0 {
        guard controls.contains(.noExecute) else { throw .firstStageEntryReserved }
        isDisabled = true
      }
      if entry & FirstStageEntry.user == 0 { isUser = false }
      if level <= 3, entry & FirstStageEntry.pageSize != 0 { break }
      table = entry & WalkRules.addressBits
    }
    if isDisabled || isSupervisor && controls.contains(.supervisorExecutionPrevention) && isUser {
      throw .executePermission
    }
  }
}
