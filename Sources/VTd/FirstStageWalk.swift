import Hardware

// First-stage translation (VT-d 3.6): 4- and 5-level tables in the form of the processor's own. Nested
// (VT-d 3.8), every address in them, and the address that comes out, is a second stage's input.

/// A first-stage table, as a PASID-table entry names it.
struct FirstStageTable: Hashable, Sendable {
  /// FSPTPTR.
  var root: UInt64
  /// From FSPM: 4 or 5.
  var levels: Int
  /// WPE: a supervisor's writes, too, need R/W.
  var writeProtect = false
  /// EAFE: EA is set where A is.
  var extendedAccessed = false
  /// PWSNP.
  var pageWalkSnoop = false
  /// The request has supervisor privilege.
  var isSupervisor = false
  /// The second stage below, in nested translation.
  var nested: SecondStageTable?

  /// Whether bits 63:N-1 are alike, N the width that the levels cover.
  @inline(__always)
  func isCanonical(_ input: UInt64) -> Bool {
    let sign = Int64(bitPattern: input) &>> Int64(truncatingIfNeeded: 11 &+ 9 &* levels)
    return sign == 0 || sign == -1
  }

  /// Translates one address, and sets accessed and dirty bits.
  /// - Throws: the fault that the request meets.
  func walk(
    _ input: UInt64, for access: DMAAccess, rules: WalkRules, memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping {
    guard isCanonical(input) else { throw .addressNotCanonical }
    for _ in 0..<WalkRules.attempts {
      guard let mapping = try attempt(input, for: access, rules: rules, memory: memory) else { continue }
      guard let nested else { return mapping }
      return try below(mapping, nested, input, for: access, rules: rules, memory: memory)
    }
    throw .firstStageUpdateFailed
  }

  /// - Returns: nil where an entry changed while its accessed or dirty bit was being set.
  private func attempt(
    _ input: UInt64, for access: DMAAccess, rules: WalkRules, memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping? {
    var table = root
    var granted = FirstStageEntry.writable | FirstStageEntry.user
    var level = levels
    var shift = 12 &+ 9 &* (levels &- 1)
    while true {
      let place = table | (input &>> UInt64(truncatingIfNeeded: shift) & 0x1ff) &<< 3
      let address = try physical(place, isRoot: level == levels, for: .read, rules: rules, memory: memory)
      guard let entry = memory.loadUInt64(at: address) else {
        throw level == levels ? .firstStageRootAccess : .firstStageEntryAccess
      }
      guard entry & FirstStageEntry.present != 0 else { throw .firstStageEntryNotPresent }
      let isLeaf = level == 1 || level <= 3 && entry & FirstStageEntry.pageSize != 0
      guard entry & rules.firstStageReserved(level: level, isLeaf: isLeaf) == 0 else {
        throw .firstStageEntryReserved
      }
      granted &= entry
      if !isSupervisor, granted & FirstStageEntry.user == 0 { throw .userPrivilege }
      let writable = granted & FirstStageEntry.writable != 0 || isSupervisor && !writeProtect
      if access.contains(.write), !writable { throw .scalableWritePermission }

      var updated = entry | FirstStageEntry.accessed
      if extendedAccessed { updated |= FirstStageEntry.extendedAccessed }
      if isLeaf, access.contains(.write) { updated |= FirstStageEntry.dirty }
      if updated != entry {
        if rules.pageWalkSnoopMatters, !pageWalkSnoop { throw .firstStageUpdateWithoutSnoop }
        if nested != nil {
          // The second stage must let the table be written, and notes that it was.
          _ = try physical(place, isRoot: level == levels, for: .write, rules: rules, memory: memory)
        }
        let found = memory.compareExchangeUInt64(at: address, expected: entry, desired: updated)
        guard found != nil else { throw .firstStageUpdateFailed }
        guard found == entry else { return nil }
      }
      table = entry & WalkRules.addressBits
      if isLeaf {
        // A page that is not marked dirty yet is cached as read-only, so that the first write marks it.
        return Mapping(
          output: (table &>> UInt64(truncatingIfNeeded: shift)) &<< UInt64(truncatingIfNeeded: shift), shift: shift,
          readable: true,
          writable: writable && updated & FirstStageEntry.dirty != 0)
      }
      level &-= 1
      shift &-= 9
    }
  }

  /// Where a paging entry is in memory.
  @inline(__always)
  private func physical(
    _ place: UInt64, isRoot: Bool, for access: DMAAccess, rules: WalkRules, memory: any PhysicalMemory
  ) throws(FaultReason) -> UInt64 {
    guard let nested else { return place }
    return try Self.physical(place, below: nested, isRoot: isRoot, for: access, rules: rules, memory: memory)
  }

  /// Apart, so that a first stage alone is one short loop.
  @inline(never)
  private static func physical(
    _ place: UInt64, below nested: SecondStageTable, isRoot: Bool, for access: DMAAccess, rules: WalkRules,
    memory: any PhysicalMemory
  ) throws(FaultReason) -> UInt64 {
    do {
      return try nested.walk(place, for: access, rules: rules, memory: memory).address(of: place)
    } catch {
      switch error {
      case .scalableAddressBeyondWidth: throw .firstStageEntryBeyondWidth
      case .scalableWritePermission: throw .firstStageEntryWritePermission
      case .scalableReadPermission, .scalableSecondStageNotPresent:
        throw isRoot ? .firstStageRootReadPermission : .firstStageEntryReadPermission
      default: throw error
      }
    }
  }

  /// Takes what the first stage made of a request through the second: the smaller page, both's rights.
  @inline(never)
  private func below(
    _ upper: Mapping, _ nested: SecondStageTable, _ input: UInt64, for access: DMAAccess, rules: WalkRules,
    memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping {
    let middle = upper.address(of: input)
    let lower: Mapping
    do {
      lower = try nested.walk(middle, for: access, rules: rules, memory: memory)
    } catch {
      throw error == .scalableAddressBeyondWidth ? .firstStageOutputBeyondWidth : error
    }
    let shift = min(upper.shift, lower.shift)
    return Mapping(
      output: (lower.address(of: middle) &>> UInt64(truncatingIfNeeded: shift)) &<< UInt64(truncatingIfNeeded: shift),
      shift: shift,
      readable: upper.readable && lower.readable, writable: upper.writable && lower.writable)
  }
}
