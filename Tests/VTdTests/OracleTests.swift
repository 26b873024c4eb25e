import Hardware
import Testing

@testable import VTd

/// A walker written apart from the unit's, from the tables of the specification: slow, by recursion over
/// arrays of bits, without caches.
struct ReferenceWalker {
  enum Verdict: Equatable {
    case at(UInt64)
    case fault(UInt8)
  }

  let guest: Guest
  let hostWidth: Int

  /// Bits low...high, as a list of positions.
  private func anySet(_ value: UInt64, _ low: Int, _ high: Int) -> Bool {
    low <= high && (low...high).contains { value & (1 << UInt64($0)) != 0 }
  }

  private func indexed(_ input: UInt64, _ level: Int) -> UInt64 {
    (input / (UInt64(0x1000) << UInt64(9 * (level - 1)))) % 512
  }

  private func load(_ address: UInt64) -> UInt64? {
    address <= UInt64(Guest.memorySize - 8) ? guest.load(address) : nil
  }

  func firstStage(_ input: UInt64, root: UInt64, levels: Int, write: Bool, gigabyte: Bool) -> Verdict {
    let top = 12 + 9 * levels - 1
    let upper = input >> UInt64(top)
    if upper != 0 && upper != UInt64.max >> UInt64(top) { return .fault(0x80) }
    func descend(_ table: UInt64, _ level: Int) -> Verdict {
      guard let entry = load(table + indexed(input, level) * 8) else { return .fault(level == levels ? 0x73 : 0x70) }
      if entry % 2 == 0 { return .fault(0x71) }
      let large = entry / 128 % 2 == 1
      let leaf = level == 1 || large && (level == 2 || level == 3)
      var wrong = anySet(entry, hostWidth, 51)
      if level >= 4 && large { wrong = true }
      if level == 3 && large && !gigabyte { wrong = true }
      if leaf && level > 1 { wrong = wrong || anySet(entry, 13, 12 + 9 * (level - 1) - 1) }
      if wrong { return .fault(0x72) }
      if entry / 4 % 2 == 0 { return .fault(0x81) }
      if write && entry / 2 % 2 == 0 { return .fault(0x85) }
      let address = entry % (1 << 52) / 4096 * 4096
      if !leaf { return descend(address, level - 1) }
      let size = UInt64(4096) << UInt64(9 * (level - 1))
      return deliver(address / size * size + input % size, scalable: true)
    }
    return descend(root, levels)
  }

  func secondStage(_ input: UInt64, root: UInt64, levels: Int, write: Bool, scalable: Bool) -> Verdict {
    if input / (1 << UInt64(12 + 9 * levels)) != 0 { return .fault(scalable ? 0x83 : 0x04) }
    func descend(_ table: UInt64, _ level: Int) -> Verdict {
      guard let entry = load(table + indexed(input, level) * 8) else {
        return .fault(!scalable ? 0x07 : level == levels ? 0x7b : 0x78)
      }
      if entry % 4 == 0 { return .fault(scalable ? 0x79 : write ? 0x05 : 0x06) }
      let large = entry / 128 % 2 == 1
      let leaf = level == 1 || large && (level == 2 || level == 3)
      var wrong = anySet(entry, hostWidth, 51) || anySet(entry, 62, 62)
      if level >= 4 && large { wrong = true }
      if anySet(entry, 11, 11) && !(leaf && scalable) { wrong = true }
      if leaf && level > 1 { wrong = wrong || anySet(entry, 12, 12 + 9 * (level - 1) - 1) }
      if wrong { return .fault(scalable ? 0x7a : 0x0c) }
      if write && entry / 2 % 2 == 0 { return .fault(scalable ? 0x85 : 0x05) }
      if !write && entry % 2 == 0 { return .fault(scalable ? 0x86 : 0x06) }
      let address = entry % (1 << 52) / 4096 * 4096
      if !leaf { return descend(address, level - 1) }
      let size = UInt64(4096) << UInt64(9 * (level - 1))
      return deliver(address / size * size + input % size, scalable: scalable)
    }
    return descend(root, levels)
  }

  private func deliver(_ output: UInt64, scalable: Bool) -> Verdict {
    (0xfee0_0000...0xfeef_ffff).contains(output) ? .fault(scalable ? 0x87 : 0x0e) : .at(output)
  }
}

@Suite("The unit against a walker written apart")
struct OracleTests {
  static let seed: UInt64 = .random(in: .min ... .max)

  /// Tables of random entries in a few pages, so that walks go deep, loop and cross: every entry is likely
  /// present, its rights and its odd bits unlikely wrong.
  func fill(_ guest: Guest, pages: [UInt64], secondStage: Bool, _ random: inout SeededGenerator) {
    for page in pages {
      for slot: UInt64 in 0..<512 {
        var entry: UInt64
        switch random.next() % 16 {
        case 0..<9: entry = pages[Int(random.next() % UInt64(pages.count))]
        case 9, 10: entry = (random.next() % 0x1000) << 12
        case 11: entry = ((random.next() % 8) << 30) | 0x80
        case 12: entry = ((random.next() % 64) << 21) | 0x80
        case 13: entry = 0xfee0_0000 | (random.next() % 4) << 12
        case 14: entry = 0xfee0_0000 - 0x20_0000 * (random.next() % 2) | 0x80
        default: entry = random.next() & 0xf_ffff_ffff_ffff
        }
        entry |= secondStage ? 0x3 : 0x7
        if random.next() % 16 == 0 { entry ^= 1 << (random.next() % 64) }
        if random.next() % 8 == 0 { entry ^= 1 << (random.next() % 3) }
        guest.store(entry, at: page + slot * 8)
      }
    }
  }

  /// An address of which each level's index is one of a few, so that requests meet again.
  func address(_ random: inout SeededGenerator, bits: Int) -> UInt64 {
    var address = random.next() & 0xfff
    for level in 0..<5 { address |= (random.next() % (random.next() % 4 == 0 ? 512 : 6)) << UInt64(12 + 9 * level) }
    switch random.next() % 8 {
    case 0: return address
    case 1: return 0xfee0_0000 - 0x2000 + (random.next() % 0x10_4000)
    default:
      address &= UInt64.lowBits(bits - 1)
      return random.next() % 4 == 0 ? address | ~UInt64.lowBits(bits - 1) : address
    }
  }

  func run(
    _ guest: Guest, port: any MemoryPort, bits: Int, count: Int, seed: UInt64,
    reference: (UInt64, Bool) -> ReferenceWalker.Verdict
  ) {
    var random = SeededGenerator(seed: seed)
    var differences = 0
    var verdicts: [UInt8: Int] = [:]
    for _ in 0..<count {
      let input = address(&random, bits: bits)
      let write = random.next() % 3 == 0
      if input >> 20 == 0xfee { continue }  // interrupt requests
      if random.next() % 64 == 0 { guest.write64(0xf8, 1 << 63 | 1 << 60) }
      let expected = reference(input, write)
      if case .fault(let reason) = expected { verdicts[reason, default: 0] += 1 } else { verdicts[0, default: 0] += 1 }
      let actual: ReferenceWalker.Verdict
      switch port.answer(input, count: 1, write ? .write : .read) {
      case .at(let output, _): actual = .at(output)
      case .refused: actual = .fault(guest.takeFault()?.reason ?? 0)
      }
      if actual != expected {
        differences += 1
        if differences < 4 {
          Issue.record("seed \(seed): \(String(input, radix: 16)) write \(write): \(actual), not \(expected)")
        }
      }
    }
    #expect(differences == 0, "seed \(seed)")
    // The tables are such that requests pass, and that they meet several faults.
    #expect(verdicts[0, default: 0] > count / 50, "seed \(seed): \(verdicts)")
    #expect(verdicts.count >= 5, "seed \(seed): \(verdicts)")
  }

  @Test("First stage, 4 and 5 levels, with and without 1 GiB pages", arguments: [(4, true), (4, false), (5, true)])
  func firstStage(levels: Int, gigabyte: Bool) throws {
    for round: UInt64 in 0..<4 {
      let seed = Self.seed &+ round
      let guest = try Guest.firstStage {
        $0.addressWidth = levels == 5 ? 57 : 48
        $0.fs1gp = gigabyte
      }
      var random = SeededGenerator(seed: seed)
      let source = RequesterID(rawValue: 0x18)
      let pages = (0..<6).map { _ in guest.page() }
      fill(guest, pages: pages, secondStage: false, &random)
      let words = Guest.pasidEntry(type: 1, firstStage: pages[0], third: levels == 5 ? 4 : 0)
      let tables = guest.scalableTables(source: source, words: words)
      guest.setRootTable(tables.root, scalable: true)
      guest.enableTranslation()
      let walker = ReferenceWalker(guest: guest, hostWidth: guest.unit.options.hostAddressWidth)
      run(guest, port: guest.port(source), bits: 12 + 9 * levels, count: 8000, seed: seed) {
        walker.firstStage($0, root: pages[0], levels: levels, write: $1, gigabyte: gigabyte)
      }
    }
  }

  @Test("Second stage, legacy and scalable, 3 and 4 levels", arguments: [3, 4], [false, true])
  func secondStage(levels: Int, scalable: Bool) throws {
    for round: UInt64 in 0..<3 {
      let seed = Self.seed &+ 100 &+ round
      let guest = try Guest { $0.scalableMode = scalable }
      var random = SeededGenerator(seed: seed)
      let source = RequesterID(rawValue: 0x18)
      let pages = (0..<6).map { _ in guest.page() }
      fill(guest, pages: pages, secondStage: true, &random)
      if scalable {
        let words = Guest.pasidEntry(type: 2, secondStage: pages[0], addressWidth: UInt64(levels - 2))
        guest.setRootTable(guest.scalableTables(source: source, words: words).root, scalable: true)
      } else {
        let tables = guest.legacyTables(source: source, secondStage: pages[0], addressWidth: UInt64(levels - 2))
        guest.setRootTable(tables.root, scalable: false)
      }
      guest.enableTranslation()
      let walker = ReferenceWalker(guest: guest, hostWidth: 48)
      run(guest, port: guest.port(source), bits: 12 + 9 * levels, count: 8000, seed: seed) {
        walker.secondStage($0, root: pages[0], levels: levels, write: $1, scalable: scalable)
      }
    }
  }
}
