import Hardware

// Second-stage translation (VT-d 3.7): 3-, 4- and 5-level tables in the format of extended page tables. Legacy context
// entries and PASID-table entries point to the tables. A second stage translates alone or below a first stage.

/// A second-stage table, as a context entry or PASID-table entry describes it.
struct SecondStageTable: Hashable, Sendable {
  /// SSPTPTR.
  var root: UInt64
  /// From AW: 3, 4 or 5.
  var levels: Int
  /// Whether faults have the codes of scalable mode.
  var isScalable: Bool
  /// SSADE: walks set accessed and dirty bits.
  var accessedDirty = false
  /// PWSNP.
  var pageWalkSnoop = false

  var addressWidth: Int { 12 &+ 9 &* levels }

  private func fault(_ legacy: FaultReason, _ scalable: FaultReason) -> FaultReason { isScalable ? scalable : legacy }

  /// - Throws: the fault condition that the request meets. A nested walk replaces some conditions by its own.
  func walk(
    _ input: UInt64, for access: DMAAccess, rules: WalkRules, memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping {
    let width = min(addressWidth, rules.maximumGuestAddressWidth)
    guard input &>> UInt64(truncatingIfNeeded: width) == 0 else {
      throw fault(.addressBeyondWidth, .scalableAddressBeyondWidth)
    }
    for _ in 0..<WalkRules.attempts {
      if let mapping = try attempt(input, for: access, rules: rules, memory: memory) { return mapping }
    }
    throw .scalableSecondStageUpdateFailed
  }

  /// - Returns: nil if an entry changed during the update of its accessed or dirty bit.
  private func attempt(
    _ input: UInt64, for access: DMAAccess, rules: WalkRules, memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping? {
    // `walkTables` descends through entries with all these bits: they point to a table, restrict nothing and are
    // accessed.
    var required = SecondStageEntry.readable | SecondStageEntry.writable
    if accessedDirty { required |= SecondStageEntry.accessed }
    let forbidden = rules.secondStageReserved(level: 5, isLeaf: false)
    var table = root
    var granted = SecondStageEntry.readable | SecondStageEntry.writable
    var level = levels
    while true {
      let position = memory.walkTables(input, from: table, level: level, mustHave: required, mustNotHave: forbidden)
      let address = position.address
      level = position.level
      guard let entry = position.entry else {
        throw fault(
          .secondStageEntryAccess, level == levels ? .scalableSecondStageRootAccess : .scalableSecondStageEntryAccess)
      }
      guard entry & (SecondStageEntry.readable | SecondStageEntry.writable) != 0 else {
        throw fault(access.contains(.write) ? .writePermission : .readPermission, .scalableSecondStageNotPresent)
      }
      let isLeaf = level == 1 || level <= 3 && entry & SecondStageEntry.pageSize != 0
      guard entry & rules.secondStageReserved(level: level, isLeaf: isLeaf) == 0 else {
        throw fault(.secondStageEntryReserved, .scalableSecondStageEntryReserved)
      }
      granted &= entry
      if access.contains(.write), granted & SecondStageEntry.writable == 0 {
        throw fault(.writePermission, .scalableWritePermission)
      }
      if access.contains(.read), granted & SecondStageEntry.readable == 0 {
        throw fault(.readPermission, .scalableReadPermission)
      }
      var isDirty = true
      if accessedDirty {
        var updated = entry | SecondStageEntry.accessed
        if isLeaf, access.contains(.write) { updated |= SecondStageEntry.dirty }
        if updated != entry {
          if rules.pageWalkSnoopMatters, !pageWalkSnoop { throw .scalableSecondStageUpdateWithoutSnoop }
          guard memory.compareExchangeUInt64(at: address, expected: entry, desired: updated) == entry else {
            return nil
          }
        }
        isDirty = updated & SecondStageEntry.dirty != 0
      }
      table = entry & WalkRules.addressBits
      if isLeaf {
        let shift = 3 &+ 9 &* level
        return Mapping(
          output: (table &>> UInt64(truncatingIfNeeded: shift)) &<< UInt64(truncatingIfNeeded: shift), shift: shift,
          readable: granted & SecondStageEntry.readable != 0,
          writable: granted & SecondStageEntry.writable != 0 && isDirty)
      }
      level &-= 1
    }
  }
}
