import Hardware

// First-stage translation (VT-d 3.6): 4- and 5-level tables in the form of the processor's own. Nested
// (VT-d 3.8), every address in them, and the address that comes out, is a second stage's input.

/// A first-stage table, as a PASID-table entry names it.
struct FirstStageTable: Hashable, Sendable {
  /// FSPTPTR.
  var root: UInt64
  /// From FSPM: 4 or 5.
  var levels: Int
  var controls: Controls = []
  /// The second stage below, in nested translation.
  var nested: SecondStageTable?

  /// In one byte, as each miss copies them.
  struct Controls: OptionSet, Hashable, Sendable {
    let rawValue: UInt8

    /// WPE: a supervisor's writes, too, need R/W.
    static let writeProtect = Controls(rawValue: 1 << 0)
    /// EAFE: EA is set where A is.
    static let extendedAccessed = Controls(rawValue: 1 << 1)
    /// PWSNP.
    static let pageWalkSnoop = Controls(rawValue: 1 << 2)
    /// The request has supervisor privilege.
    static let supervisor = Controls(rawValue: 1 << 3)
    /// ERE: requests to execute are let through.
    static let executeRequests = Controls(rawValue: 1 << 4)
    /// NXE: XD of an entry means something.
    static let noExecute = Controls(rawValue: 1 << 5)
    /// SMEP: a supervisor does not execute from a user's pages.
    static let supervisorExecutionPrevention = Controls(rawValue: 1 << 6)
  }

  var writeProtect: Bool { controls.contains(.writeProtect) }
  var extendedAccessed: Bool { controls.contains(.extendedAccessed) }
  var pageWalkSnoop: Bool { controls.contains(.pageWalkSnoop) }
  var isSupervisor: Bool { controls.contains(.supervisor) }

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
    if let nested { return try walk(input, through: nested, for: access, rules: rules, memory: memory) }
    for _ in 0..<WalkRules.attempts {
      if let mapping = try attempt(input, through: nil, for: access, rules: rules, memory: memory) { return mapping }
    }
    throw .firstStageUpdateFailed
  }

  /// The same nested. Apart, so that a first stage alone is one short loop.
  @inline(never)
  private func walk(
    _ input: UInt64, through nested: SecondStageTable, for access: DMAAccess, rules: WalkRules,
    memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping {
    for _ in 0..<WalkRules.attempts {
      if let mapping = try attempt(input, through: nested, for: access, rules: rules, memory: memory) { return mapping }
    }
    throw .firstStageUpdateFailed
  }

  /// - Parameter nested: as in the table; both callers know whether there is one.
  /// - Returns: nil where an entry changed while its accessed or dirty bit was being set.
  @inline(__always)
  private func attempt(
    _ input: UInt64, through nested: SecondStageTable?, for access: DMAAccess, rules: WalkRules,
    memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping? {
    // An entry like this needs no second look: it leads on, restricts nothing and is marked.
    var required = FirstStageEntry.present | FirstStageEntry.writable | FirstStageEntry.user | FirstStageEntry.accessed
    if extendedAccessed { required |= FirstStageEntry.extendedAccessed }
    let forbidden = rules.firstStageReserved(level: 5, isLeaf: false)
    var table = root
    var granted = FirstStageEntry.writable | FirstStageEntry.user
    var level = levels
    while true {
      let place: UInt64
      let address: UInt64
      let loaded: UInt64?
      if let nested {
        place = table | (input &>> UInt64(truncatingIfNeeded: 3 &+ 9 &* level) & 0x1ff) &<< 3
        address = try physical(place, nested, isRoot: level == levels, for: .read, rules: rules, memory: memory)
        loaded = memory.loadUInt64(at: address)
      } else {
        let position = memory.walkTables(input, from: table, level: level, mustHave: required, mustNotHave: forbidden)
        place = position.address
        address = place
        loaded = position.entry
        level = position.level
      }
      guard let entry = loaded else { throw level == levels ? .firstStageRootAccess : .firstStageEntryAccess }
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
        if let nested {
          // The second stage must let the table be written. It is not written yet, so nothing is marked.
          var unmarked = nested
          unmarked.accessedDirty = false
          _ = try physical(place, unmarked, isRoot: level == levels, for: .write, rules: rules, memory: memory)
        }
      }
      table = entry & WalkRules.addressBits
      var found: Mapping?
      if isLeaf {
        // A page that is not marked dirty yet is cached as read-only, so that the first write marks it.
        let shift = 3 &+ 9 &* level
        let mapping = Mapping(
          output: (table &>> UInt64(truncatingIfNeeded: shift)) &<< UInt64(truncatingIfNeeded: shift), shift: shift,
          readable: true, writable: writable && updated & FirstStageEntry.dirty != 0)
        if let nested {
          // Before the leaf is marked: a write that the second stage refuses makes no page dirty.
          found = try below(mapping, nested, input, for: access, rules: rules, memory: memory)
        } else {
          found = mapping
        }
      }
      if updated != entry {
        if let nested, nested.accessedDirty {
          _ = try physical(place, nested, isRoot: level == levels, for: .write, rules: rules, memory: memory)
        }
        let previous = memory.compareExchangeUInt64(at: address, expected: entry, desired: updated)
        guard previous != nil else { throw .firstStageUpdateFailed }
        guard previous == entry else { return nil }
      }
      if let found { return found }
      level &-= 1
    }
  }

  /// Where a paging entry of a nested first stage is in memory.
  private func physical(
    _ place: UInt64, _ nested: SecondStageTable, isRoot: Bool, for access: DMAAccess, rules: WalkRules,
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
