import Hardware
import VTd

/// Compares the unit with the walker: both answer random requests on random tables.
package struct Comparison {
  /// What translates the requests.
  package enum Subject: Hashable, Sendable, CaseIterable {
    case firstStage4
    case firstStage4WithoutGigabytePages
    case firstStage5
    case legacy3
    case legacy4
    case secondStage3
    case secondStage4
    case nested3
    case nested4
  }

  /// The first request for which the two differ.
  package struct Difference: Sendable, CustomStringConvertible {
    package let description: String
  }

  package private(set) var accesses = 0
  /// How often each fault reason occurred; 0 counts the requests that passed.
  package private(set) var verdicts: [UInt8: Int] = [:]
  package private(set) var difference: Difference?

  let subject: Subject
  let seed: UInt64
  let guest: Guest
  let port: any DMAPort
  private var walker: ReferenceWalker
  var tables: RandomTables
  let bits: Int
  /// The words of the root, context and PASID tables, by address.
  private let sourceWords: [UInt64: UInt64]

  /// Compares the two on the tables of one seed, up to the first difference.
  /// - Parameter accesses: the number of requests.
  package static func run(_ subject: Subject, seed: UInt64, accesses: Int) throws -> Comparison {
    var comparison = try Comparison(subject, seed: seed)
    while comparison.accesses < accesses, comparison.difference == nil { comparison.step() }
    return comparison
  }

  init(_ subject: Subject, seed: UInt64) throws {
    self.subject = subject
    self.seed = seed
    tables = RandomTables(seed: seed)
    let source = Self.source
    // The tables do not change, so an entry that caching mode keeps stays correct.
    let cachingMode = seed % 2 == 1
    let sourceTables: UInt64
    switch subject {
    case .firstStage4, .firstStage4WithoutGigabytePages, .firstStage5:
      let isFive = subject == .firstStage5
      let gigabyte = subject != .firstStage4WithoutGigabytePages
      guest = try Guest.firstStage {
        $0.addressWidth = isFive ? 57 : 48
        $0.fs1gp = gigabyte
        $0.cachingMode = cachingMode
      }
      let pages = Self.pages(of: guest)
      tables.fill(pages, of: guest, .first, to: pages)
      sourceTables = guest.page()
      guest.start(
        source, scalable: Guest.pasidEntry(type: 1, firstStage: pages[0], third: isFive ? 4 : 0))
      walker = Self.walker(guest, .first(root: pages[0], levels: isFive ? 5 : 4))
      walker.gigabyte = gigabyte
      bits = isFive ? 57 : 48
    case .legacy3, .legacy4, .secondStage3, .secondStage4:
      let scalable = subject == .secondStage3 || subject == .secondStage4
      let levels = subject == .legacy3 || subject == .secondStage3 ? 3 : 4
      guest = try Guest {
        $0.scalableMode = scalable
        $0.cachingMode = cachingMode
      }
      let pages = Self.pages(of: guest)
      tables.fill(pages, of: guest, .second, to: pages)
      sourceTables = guest.page()
      if scalable {
        guest.start(
          source, scalable: Guest.pasidEntry(type: 2, secondStage: pages[0], addressWidth: UInt64(levels - 2)))
      } else {
        let entries = guest.legacyTables(source: source, secondStage: pages[0], addressWidth: UInt64(levels - 2))
        guest.setRootTable(entries.root, scalable: false)
        guest.enableTranslation()
      }
      walker = Self.walker(guest, .second(root: pages[0], levels: levels))
      walker.scalable = scalable
      bits = 12 + 9 * levels
    case .nested3, .nested4:
      let levels = subject == .nested3 ? 3 : 4
      guest = try Guest.nested { $0.cachingMode = cachingMode }
      let first = Self.pages(of: guest)
      let second = Self.pages(of: guest)
      tables.fill(first, of: guest, .first, to: [0, 0x1000, 0x2000, 0x20_0000, 0x4000_0000])
      tables.fill(second, of: guest, .second, to: second + first + first)
      tables.leadToTables(second, of: guest, levels: levels, first: first)
      let marks = tables.choice(2) == 0
      sourceTables = guest.page()
      guest.start(
        source,
        scalable: Guest.pasidEntry(
          type: 3, firstStage: 0, secondStage: second[0], addressWidth: UInt64(levels - 2),
          first: marks ? 1 << 9 : 0, second: 1 << 23))
      walker = Self.walker(guest, .nested(first: 0, second: second[0], secondLevels: levels))
      walker.secondStageMarks = marks
      bits = 48
    }
    port = guest.port(source)
    let words = stride(from: sourceTables, to: guest.page(), by: 8)
    sourceWords = Dictionary(uniqueKeysWithValues: words.map { [guest] in ($0, guest.load($0)) })
  }

  private static func pages(of guest: Guest) -> [UInt64] { (0..<6).map { _ in guest.page() } }

  private static func walker(_ guest: Guest, _ tables: ReferenceWalker.Tables) -> ReferenceWalker {
    ReferenceWalker(memory: guest.memory, tables: tables, hostWidth: guest.unit.options.hostAddressWidth)
  }

  /// Makes one request, sometimes after an invalidation.
  private mutating func step() {
    let input = tables.address(bits: bits)
    let write = tables.choice(3) == 0
    if input >> 20 == 0xfee { return }  // interrupt requests
    if tables.choice(64) == 0 { guest.forgetAll() }
    accesses += 1
    let expected = walker.verdict(input, write: write)
    let actual: ReferenceWalker.Verdict
    switch port.answer(input, count: 1, write ? .write : .read) {
    case .at(let output, _):
      actual = .at(output)
      verdicts[0, default: 0] += 1
    case .refused:
      let reason = guest.takeFault()?.reason ?? 0
      actual = .fault(reason)
      verdicts[reason, default: 0] += 1
    }
    let request = "\(subject), seed \(seed), request \(accesses): \(write ? "write" : "read") 0x\(hex(input))"
    if actual != expected {
      difference = Difference(description: "\(request): the unit says \(actual), the walker \(expected)")
    } else if case .at = actual {
      for (address, entry) in walker.marked where guest.load(address) != entry {
        difference = Difference(
          description:
            "\(request): the entry at 0x\(hex(address)) is 0x\(hex(guest.load(address))), not 0x\(hex(entry))")
      }
    }
    // Random tables may lead to the source tables as if these were page tables. The walker knows no source tables, so
    // undo the marks there. The unit's caches would keep the marked entries, so empty them, too.
    var isRestored = false
    for address in walker.marked.keys {
      guard let word = sourceWords[address] else { continue }
      guest.store(word, at: address)
      isRestored = true
    }
    if isRestored { guest.forgetAll() }
  }

  func hex(_ value: UInt64) -> String { String(value, radix: 16) }
}

extension Guest {
  /// Enables translation in scalable mode, with one device and its PASID-table entry.
  package func start(_ source: RequesterID, scalable words: (UInt64, UInt64, UInt64)) {
    setRootTable(scalableTables(source: source, words: words).root, scalable: true)
    enableTranslation()
  }
}

extension RandomTables {
  /// Makes it likely that the addresses in first-stage tables lead to first-stage tables. These addresses have low
  /// second-stage indices. The entries at these indices lead to a page table that maps the first-stage tables.
  mutating func leadToTables(_ second: [UInt64], of guest: Guest, levels: Int, first: [UInt64]) {
    for level in 0..<levels - 1 { guest.store(second[level + 1] | 3, at: second[level]) }
    for slot: UInt64 in 0..<512 where choice(8) != 0 {
      let rights: UInt64 = choice(16) == 0 ? 1 : 3
      guest.store(first[Int(choice(UInt64(first.count)))] | rights, at: second[levels - 1] + slot * 8)
    }
  }
}
