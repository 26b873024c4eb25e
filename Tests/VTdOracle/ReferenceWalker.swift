import Hardware

/// A walker written from the specification's tables, independently of the unit: slow, recursive, without caches. It
/// does not change memory, but records the changes that a walk would make.
package struct ReferenceWalker {
  package enum Verdict: Hashable, Sendable {
    case at(UInt64)
    case fault(UInt8)
  }

  /// The tables that translate a request.
  package enum Tables: Sendable {
    case first(root: UInt64, levels: Int)
    case second(root: UInt64, levels: Int)
    /// `first` is an address that the second stage translates.
    case nested(first: UInt64, second: UInt64, secondLevels: Int)
  }

  let memory: any PhysicalMemory
  let tables: Tables
  let hostWidth: Int
  /// Whether the first stage offers 1 GiB pages.
  var gigabyte = true
  /// Whether faults have the codes of scalable mode.
  var scalable = true
  /// Whether the second stage sets accessed and dirty bits.
  var secondStageMarks = false
  /// The levels of the first stage in nested translation.
  var nestedFirstLevels = 4
  /// Whether the request is a supervisor's, and whether a supervisor's writes need R/W (WPE).
  var supervisor = false
  var writeProtect = false
  /// Whether the first stage sets EA bits.
  var extendedAccessed = false
  /// Whether a walk may update entries: PWSNP is set, or the unit does not offer PWSNP.
  var snooped = true
  /// Whether bit 11 of second-stage leaves is legal; nil means in scalable mode only.
  var snoopBit: Bool?
  /// Whether bit 62 of second-stage leaves is ignored.
  var ignoresTransient = false

  /// What a cache may keep of a successful walk.
  struct Leaf: Hashable, Sendable {
    /// Log2 of the page size.
    var shift: UInt64
    var readable: Bool
    /// Whether writes are permitted and, if dirty bits are set, the page is marked dirty.
    var writable: Bool
  }

  /// Addresses of the entries that the last walk read.
  private(set) var visited: [UInt64] = []

  /// The leaf of the last walk, if its verdict is an address.
  private(set) var leaf = Leaf(shift: 12, readable: false, writable: false)

  /// The entries that the last walk changed, by address, with their accessed and dirty bits.
  package private(set) var marked: [UInt64: UInt64] = [:]

  init(memory: any PhysicalMemory, tables: Tables, hostWidth: Int) {
    self.memory = memory
    self.tables = tables
    self.hostWidth = hostWidth
  }

  /// Returns the result of a request.
  package mutating func verdict(_ input: UInt64, write: Bool) -> Verdict {
    marked = [:]
    visited = []
    let found =
      switch tables {
      case .first(let root, let levels): firstStage(input, root: root, levels: levels, write: write)
      case .second(let root, let levels): secondStage(input, root: root, levels: levels, write: write)
      case .nested(let root, _, _): firstStage(input, root: root, levels: nestedFirstLevels, write: write)
      }
    guard case .at(let output) = found else { return found }
    return output / 0x10_0000 == 0xfee ? .fault(scalable ? 0x87 : 0x0e) : found
  }

  /// Returns whether any of the bits low...high is set.
  private func anySet(_ value: UInt64, _ low: Int, _ high: Int) -> Bool {
    low <= high && (low...high).contains { value & (1 << UInt64($0)) != 0 }
  }

  private func indexed(_ input: UInt64, _ level: Int) -> UInt64 {
    (input / (UInt64(0x1000) << UInt64(9 * (level - 1)))) % 512
  }

  private func load(_ address: UInt64) -> UInt64? { marked[address] ?? memory.loadUInt64(at: address) }

  private mutating func mark(_ address: UInt64, _ entry: UInt64, _ bits: UInt64) {
    if entry | bits != entry { marked[address] = entry | bits }
  }

  /// Returns the address of `input` in the page that a leaf points to.
  private func within(_ page: UInt64, _ level: Int, _ input: UInt64) -> UInt64 {
    let size = UInt64(4096) << UInt64(9 * (level - 1))
    return page / size * size + input % size
  }

  private mutating func firstStage(_ input: UInt64, root: UInt64, levels: Int, write: Bool) -> Verdict {
    let top = 12 + 9 * levels - 1
    let upper = input >> UInt64(top)
    if upper != 0 && upper != UInt64.max >> UInt64(top) { return .fault(0x80) }
    var table = root
    var allows = true
    for level in (1...levels).reversed() {
      let isRoot = level == levels
      let guest = table + indexed(input, level) * 8
      let place: UInt64
      switch below(guest, write: false, isRoot: isRoot) {
      case .at(let output): place = output
      case let fault: return fault
      }
      guard let entry = load(place) else { return .fault(isRoot ? 0x73 : 0x70) }
      visited.append(place)
      if entry % 2 == 0 { return .fault(0x71) }
      let large = entry / 128 % 2 == 1
      let leaf = level == 1 || large && (level == 2 || level == 3)
      var wrong = anySet(entry, hostWidth, 51)
      if level >= 4 && large { wrong = true }
      if level == 3 && large && !gigabyte { wrong = true }
      if leaf && level > 1 { wrong = wrong || anySet(entry, 13, 12 + 9 * (level - 1) - 1) }
      if wrong { return .fault(0x72) }
      if entry / 4 % 2 == 0 && !supervisor { return .fault(0x81) }
      if entry / 2 % 2 == 0 && (!supervisor || writeProtect) { allows = false }
      if write && !allows { return .fault(0x85) }
      let bits: UInt64 = (leaf && write ? 0x60 : 0x20) + (extendedAccessed ? 0x400 : 0)
      if entry & bits != bits {
        if !snooped { return .fault(0x90) }
        // Before the request's output, check whether the second stage permits a write to the table. Mark nothing yet.
        var probe = self
        probe.secondStageMarks = false
        if case .fault(let reason) = probe.below(guest, write: true, isRoot: isRoot) { return .fault(reason) }
        visited = probe.visited
      }
      let address = entry % (1 << 52) / 4096 * 4096
      var end: (verdict: Verdict, leaf: Leaf)?
      if leaf {
        let output = within(address, level, input)
        let upper = Leaf(
          shift: UInt64(3 + 9 * level), readable: true, writable: allows && (write || entry & 0x40 != 0))
        end = (.at(output), upper)
        if case .nested(_, let second, let secondLevels) = tables {
          let verdict = secondStage(output, root: second, levels: secondLevels, write: write)
          // A refused request does not mark the leaf.
          if case .fault(let reason) = verdict { return .fault(reason == 0x83 ? 0x84 : reason) }
          let lower = self.leaf
          end = (
            verdict,
            Leaf(
              shift: min(upper.shift, lower.shift), readable: lower.readable,
              writable: upper.writable && lower.writable)
          )
        }
      }
      if entry & bits != bits {
        if case .fault(let reason) = below(guest, write: true, isRoot: isRoot) { return .fault(reason) }
        // The second stage may have marked this same entry meanwhile.
        mark(place, load(place) ?? entry, bits)
      }
      if let end {
        self.leaf = end.leaf
        return end.verdict
      }
      table = address
    }
    return .fault(0)  // unreachable: level 1 is a leaf
  }

  /// Returns the memory address of a first-stage entry.
  private mutating func below(_ guest: UInt64, write: Bool, isRoot: Bool) -> Verdict {
    guard case .nested(_, let second, let secondLevels) = tables else { return .at(guest) }
    switch secondStage(guest, root: second, levels: secondLevels, write: write) {
    case .fault(0x83): return .fault(0x74)
    case .fault(0x85): return .fault(0x77)
    case .fault(0x86), .fault(0x79): return .fault(isRoot ? 0x75 : 0x76)
    case let verdict: return verdict
    }
  }

  private mutating func secondStage(_ input: UInt64, root: UInt64, levels: Int, write: Bool) -> Verdict {
    if input / (1 << UInt64(12 + 9 * levels)) != 0 { return .fault(scalable ? 0x83 : 0x04) }
    var table = root
    var rights: UInt64 = 3
    for level in (1...levels).reversed() {
      let place = table + indexed(input, level) * 8
      guard let entry = load(place) else {
        return .fault(!scalable ? 0x07 : level == levels ? 0x7b : 0x78)
      }
      visited.append(place)
      if entry % 4 == 0 { return .fault(scalable ? 0x79 : write ? 0x05 : 0x06) }
      let large = entry / 128 % 2 == 1
      let leaf = level == 1 || large && (level == 2 || level == 3)
      var wrong = anySet(entry, hostWidth, 51) || anySet(entry, 62, 62) && !(leaf && ignoresTransient)
      if level >= 4 && large { wrong = true }
      if anySet(entry, 11, 11) && !(leaf && snoopBit ?? scalable) { wrong = true }
      if leaf && level > 1 { wrong = wrong || anySet(entry, 12, 12 + 9 * (level - 1) - 1) }
      if wrong { return .fault(scalable ? 0x7a : 0x0c) }
      if write && entry / 2 % 2 == 0 { return .fault(scalable ? 0x85 : 0x05) }
      if !write && entry % 2 == 0 { return .fault(scalable ? 0x86 : 0x06) }
      rights &= entry
      if secondStageMarks {
        let bits: UInt64 = leaf && write ? 0x300 : 0x100
        if entry | bits != entry && !snooped { return .fault(0x7c) }
        mark(place, entry, bits)
      }
      let address = entry % (1 << 52) / 4096 * 4096
      if leaf {
        self.leaf = Leaf(
          shift: UInt64(3 + 9 * level), readable: rights & 1 != 0,
          writable: rights & 2 != 0 && (!secondStageMarks || write || entry & 0x200 != 0))
        return .at(within(address, level, input))
      }
      table = address
    }
    return .fault(0)  // unreachable: level 1 is a leaf
  }
}
