import Hardware

// First-stage translation (VT-d 3.6): 4- and 5-level tables in the format of the processor's page tables. In nested
// translation (VT-d 3.8), the second stage translates each address in these tables, and the address of the page.

/// A first-stage table, as a PASID-table entry describes it.
struct FirstStageTable: Hashable, Sendable {
  /// FSPTPTR.
  var root: UInt64
  /// From FSPM: 4 or 5.
  var levels: Int
  var controls: Controls = []
  /// The second stage, in nested translation.
  var nested: SecondStageTable?

  /// Flags in one byte, because every miss copies them.
  struct Controls: OptionSet, Hashable, Sendable {
    let rawValue: UInt8

    /// WPE: a supervisor's writes require R/W, too.
    static let writeProtect = Controls(rawValue: 1 << 0)
    /// EAFE: a walk that sets A also sets EA.
    static let extendedAccessed = Controls(rawValue: 1 << 1)
    /// PWSNP.
    static let pageWalkSnoop = Controls(rawValue: 1 << 2)
    /// The request has supervisor privilege.
    static let supervisor = Controls(rawValue: 1 << 3)
    /// ERE: requests to execute are enabled.
    static let executeRequests = Controls(rawValue: 1 << 4)
    /// NXE: XD in paging entries is enabled.
    static let noExecute = Controls(rawValue: 1 << 5)
    /// SMEP: a supervisor must not execute from user pages.
    static let supervisorExecutionPrevention = Controls(rawValue: 1 << 6)
  }

  var writeProtect: Bool { controls.contains(.writeProtect) }
  var extendedAccessed: Bool { controls.contains(.extendedAccessed) }
  var pageWalkSnoop: Bool { controls.contains(.pageWalkSnoop) }
  var isSupervisor: Bool { controls.contains(.supervisor) }

  /// Whether bits 63:N-1 are equal, where N is the address width of the levels.
  @inline(__always)
  func isCanonical(_ input: UInt64) -> Bool {
    let sign = Int64(bitPattern: input) &>> Int64(truncatingIfNeeded: 11 &+ 9 &* levels)
    return sign == 0 || sign == -1
  }

  /// Translates one address and sets accessed and dirty bits.
  /// - Throws: the fault condition that the request meets.
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

  /// Translates one address in nested translation. A separate function, so that the walk of a first stage alone is one
  /// short loop.
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

  /// - Parameter nested: the table's `nested`. As a parameter, it lets the compiler specialize this function at both
  ///   callers.
  /// - Returns: nil if an entry changed during the update of its accessed or dirty bit.
  @inline(__always)
  private func attempt(
    _ input: UInt64, through nested: SecondStageTable?, for access: DMAAccess, rules: WalkRules,
    memory: any PhysicalMemory
  ) throws(FaultReason) -> Mapping? {
    // `walkTables` descends through entries with all these bits: they point to a table, restrict nothing and are
    // accessed.
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
          // The second stage must permit the write to the table. The write comes later, so set no dirty bit yet.
          var unmarked = nested
          unmarked.accessedDirty = false
          _ = try physical(place, unmarked, isRoot: level == levels, for: .write, rules: rules, memory: memory)
        }
      }
      table = entry & WalkRules.addressBits
      var found: Mapping?
      if isLeaf {
        // Cache a clean page as read-only, so that its first write sets the dirty bit.
        let shift = 3 &+ 9 &* level
        let mapping = Mapping(
          output: (table &>> UInt64(truncatingIfNeeded: shift)) &<< UInt64(truncatingIfNeeded: shift), shift: shift,
          readable: true, writable: writable && updated & FirstStageEntry.dirty != 0)
        if let nested {
          // Translate before the leaf is updated: a write that the second stage blocks must not set its dirty bit.
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

  /// Returns the physical address of a first-stage entry in nested translation.
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

  /// Translates the first stage's output through the second stage. The result is the smaller page with the rights that
  /// both stages grant.
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
