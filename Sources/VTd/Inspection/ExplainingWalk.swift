import Hardware

// The walks of `FirstStageTable` and `SecondStageTable` with every step recorded (VT-d 3.6 to 3.8). This is a second
// implementation, because the first is written for speed. A test compares the two. An explaining walk does not write to
// memory. It keeps the accessed and dirty bits that it would set, so it sees its own updates like a real walk.

struct ExplainingWalk {
  let rules: WalkRules
  let memory: any PhysicalMemory
  /// Entries with the accessed and dirty bits that a real walk would have set.
  private var marked: [UInt64: UInt64] = [:]

  init(rules: WalkRules, memory: any PhysicalMemory) {
    self.rules = rules
    self.memory = memory
  }

  private func load(_ address: UInt64) -> UInt64? { marked[address] ?? memory.loadUInt64(at: address) }

  // MARK: First stage, and nested

  /// - Parameters:
  ///   - steps: receives the first stage's entries.
  ///   - below: receives the second stage's entries for the page, in nested translation.
  mutating func walk(
    _ table: FirstStageTable, _ input: UInt64, for access: DMAAccess, steps: inout [PagingStep],
    below: inout [PagingStep]
  ) throws(FaultReason) -> Mapping {
    guard table.isCanonical(input) else { throw .addressNotCanonical }
    for _ in 0..<WalkRules.attempts {
      steps = []
      below = []
      if let mapping = try attempt(table, input, for: access, steps: &steps, below: &below) { return mapping }
    }
    throw .firstStageUpdateFailed
  }

  /// - Returns: nil if an entry changed before its bits were set.
  private mutating func attempt(
    _ table: FirstStageTable, _ input: UInt64, for access: DMAAccess, steps: inout [PagingStep],
    below: inout [PagingStep]
  ) throws(FaultReason) -> Mapping? {
    var pointer = table.root
    var allWritable = true
    var allUser = true
    for level in stride(from: table.levels, through: 1, by: -1) {
      let isRoot = level == table.levels
      let shift = 12 + 9 * (level - 1)
      var step = PagingStep(.first, level: level, address: pointer | input[bits: shift...shift + 8] << 3)
      defer { steps.append(step) }
      let place = try self.place(step.address, table.nested, isRoot: isRoot, for: .read, steps: &step.below)
      step.physicalAddress = place
      guard let entry = load(place) else { throw isRoot ? .firstStageRootAccess : .firstStageEntryAccess }
      step.entry = memory.loadUInt64(at: place)
      guard entry & FirstStageEntry.present != 0 else { throw .firstStageEntryNotPresent }
      step.isLeaf = level == 1 || level <= 3 && entry & FirstStageEntry.pageSize != 0
      step.reservedBits = entry & rules.firstStageReserved(level: level, isLeaf: step.isLeaf)
      if step.reservedBits != 0 { throw .firstStageEntryReserved }

      allWritable = allWritable && entry & FirstStageEntry.writable != 0
      allUser = allUser && entry & FirstStageEntry.user != 0
      guard allUser || table.isSupervisor else { throw .userPrivilege }
      let mayWrite = allWritable || table.isSupervisor && !table.writeProtect
      guard mayWrite || !access.contains(.write) else { throw .scalableWritePermission }

      var marks = FirstStageEntry.accessed
      if table.extendedAccessed { marks |= FirstStageEntry.extendedAccessed }
      if step.isLeaf, access.contains(.write) { marks |= FirstStageEntry.dirty }
      step.bitsToSet = marks & ~entry
      if step.bitsToSet != 0 {
        if rules.pageWalkSnoopMatters, !table.pageWalkSnoop { throw .firstStageUpdateWithoutSnoop }
        if var unmarked = table.nested {
          unmarked.accessedDirty = false
          _ = try self.place(step.address, unmarked, isRoot: isRoot, for: .write, steps: &step.belowUpdate)
          step.belowUpdate = []
        }
      }
      var mapping: Mapping?
      if step.isLeaf {
        let upper = Mapping(
          output: entry & WalkRules.addressBits & ~UInt64.lowBits(shift), shift: shift, readable: true,
          writable: mayWrite && (entry | marks) & FirstStageEntry.dirty != 0)
        mapping =
          try table.nested.map { (second) throws(FaultReason) in
            try combine(upper, second, input, for: access, steps: &below)
          } ?? upper
      }
      if step.bitsToSet != 0 {
        if table.nested != nil {
          _ = try self.place(step.address, table.nested, isRoot: isRoot, for: .write, steps: &step.belowUpdate)
        }
        guard load(place) == entry else { return nil }
        marked[place] = entry | marks
      }
      if let mapping { return mapping }
      pointer = entry & WalkRules.addressBits
    }
    return nil  // Unreachable: at level 1 every entry is a leaf.
  }

  /// Returns the physical address of a first-stage entry. In nested translation, the second stage translates the
  /// address, and some of its faults get the codes of SFS.5 to SFS.8.
  private mutating func place(
    _ address: UInt64, _ second: SecondStageTable?, isRoot: Bool, for access: DMAAccess, steps: inout [PagingStep]
  ) throws(FaultReason) -> UInt64 {
    guard let second else { return address }
    do throws(FaultReason) {
      return try walk(second, address, for: access, steps: &steps).address(of: address)
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

  private mutating func combine(
    _ upper: Mapping, _ second: SecondStageTable, _ input: UInt64, for access: DMAAccess, steps: inout [PagingStep]
  ) throws(FaultReason) -> Mapping {
    let middle = upper.address(of: input)
    let lower: Mapping
    do throws(FaultReason) {
      lower = try walk(second, middle, for: access, steps: &steps)
    } catch {
      throw error == .scalableAddressBeyondWidth ? .firstStageOutputBeyondWidth : error
    }
    let shift = min(upper.shift, lower.shift)
    return Mapping(
      output: lower.address(of: middle) & ~UInt64.lowBits(shift), shift: shift,
      readable: upper.readable && lower.readable, writable: upper.writable && lower.writable)
  }

  // MARK: Second stage

  mutating func walk(
    _ table: SecondStageTable, _ input: UInt64, for access: DMAAccess, steps: inout [PagingStep]
  ) throws(FaultReason) -> Mapping {
    func fault(_ legacy: FaultReason, _ scalable: FaultReason) -> FaultReason { table.isScalable ? scalable : legacy }
    let width = min(table.addressWidth, rules.maximumGuestAddressWidth)
    guard input >> UInt64(width) == 0 else { throw fault(.addressBeyondWidth, .scalableAddressBeyondWidth) }

    var pointer = table.root
    var rights = SecondStageEntry.readable | SecondStageEntry.writable
    for level in stride(from: table.levels, through: 1, by: -1) {
      let shift = 12 + 9 * (level - 1)
      var step = PagingStep(.second, level: level, address: pointer | input[bits: shift...shift + 8] << 3)
      defer { steps.append(step) }
      guard let entry = load(step.address) else {
        throw fault(
          .secondStageEntryAccess,
          level == table.levels ? .scalableSecondStageRootAccess : .scalableSecondStageEntryAccess)
      }
      step.physicalAddress = step.address
      step.entry = memory.loadUInt64(at: step.address)
      guard step.isPresent else {
        throw fault(access.contains(.write) ? .writePermission : .readPermission, .scalableSecondStageNotPresent)
      }
      step.isLeaf = level == 1 || level <= 3 && entry & SecondStageEntry.pageSize != 0
      step.reservedBits = entry & rules.secondStageReserved(level: level, isLeaf: step.isLeaf)
      if step.reservedBits != 0 { throw fault(.secondStageEntryReserved, .scalableSecondStageEntryReserved) }
      rights &= entry
      if access.contains(.write), rights & SecondStageEntry.writable == 0 {
        throw fault(.writePermission, .scalableWritePermission)
      }
      if access.contains(.read), rights & SecondStageEntry.readable == 0 {
        throw fault(.readPermission, .scalableReadPermission)
      }
      var isDirty = true
      if table.accessedDirty {
        var marks = SecondStageEntry.accessed
        if step.isLeaf, access.contains(.write) { marks |= SecondStageEntry.dirty }
        step.bitsToSet = marks & ~entry
        if step.bitsToSet != 0 {
          if rules.pageWalkSnoopMatters, !table.pageWalkSnoop { throw .scalableSecondStageUpdateWithoutSnoop }
          marked[step.address] = entry | marks
        }
        isDirty = (entry | marks) & SecondStageEntry.dirty != 0
      }
      pointer = entry & WalkRules.addressBits
      if step.isLeaf {
        return Mapping(
          output: pointer & ~UInt64.lowBits(shift), shift: shift,
          readable: rights & SecondStageEntry.readable != 0,
          writable: rights & SecondStageEntry.writable != 0 && isDirty)
      }
    }
    throw fault(.secondStageEntryAccess, .scalableSecondStageEntryAccess)  // Unreachable, as above.
  }
}

/// One paging entry that a walk reads (VT-d 9.7, 9.8).
public struct PagingStep: Hashable, Sendable {
  public enum Stage: Hashable, Sendable {
    case first
    case second
  }

  public let stage: Stage
  /// 1 for a page table, up to 5.
  public let level: Int
  /// The entry's address. For a first-stage entry in nested translation, this is the input of the second stage.
  public let address: UInt64
  /// For a first-stage entry in nested translation: the second stage's entries that translate its address.
  public internal(set) var below: [PagingStep] = []
  /// The second stage's entries that translate the entry's address for the write of accessed and dirty bits.
  public internal(set) var belowUpdate: [PagingStep] = []
  /// The entry's physical address. Nil where the second stage blocks the read.
  public internal(set) var physicalAddress: UInt64?
  /// The entry in memory. Nil where it was not read.
  public internal(set) var entry: UInt64?
  /// Whether the entry maps a page.
  public internal(set) var isLeaf = false
  /// Reserved bits that are set.
  public internal(set) var reservedBits: UInt64 = 0
  /// The accessed and dirty bits that a real walk for this request would set.
  public internal(set) var bitsToSet: UInt64 = 0

  init(_ stage: Stage, level: Int, address: UInt64) {
    self.stage = stage
    self.level = level
    self.address = address
  }

  /// The entry's index in its table, 0 to 511.
  public var index: Int { Int(address[bits: 3...11]) }

  /// Whether the entry is present: P in the first stage, R or W in the second stage.
  public var isPresent: Bool {
    guard let entry else { return false }
    return stage == .first ? entry & FirstStageEntry.present != 0 : entry & 3 != 0
  }

  /// The table or page that the entry points to.
  public var output: UInt64? {
    guard isPresent, let entry else { return nil }
    let address = entry & WalkRules.addressBits
    return isLeaf ? address & ~UInt64.lowBits(12 + 9 * (level - 1)) : address
  }

  /// Mnemonics of `bitsToSet`.
  public var marks: [String] {
    let names: [(Int, String)] = stage == .first ? [(5, "A"), (6, "D"), (10, "EA")] : [(8, "A"), (9, "D")]
    return names.filter { bitsToSet[bit: $0.0] }.map(\.1)
  }

  /// Mnemonics of the flags that are set.
  public var flags: [String] {
    guard let entry else { return [] }
    let names: [(Int, String)] =
      stage == .first
      ? [(0, "P"), (1, "R/W"), (2, "U/S"), (5, "A"), (6, "D"), (7, "PS"), (10, "EA"), (63, "XD")]
      : [(0, "R"), (1, "W"), (7, "PS"), (8, "A"), (9, "D"), (11, "SNP"), (62, "TM")]
    return names.filter { entry[bit: $0.0] && ($0.0 != 7 || level > 1) && ($0.1 != "D" || isLeaf) }.map(\.1)
  }
}
