import Hardware
import VTd

// Compares the unit's explanations with its answers: each random request is first explained, then made.

extension Comparison {
  static let source = RequesterID(rawValue: 0x18)

  /// Explains and makes requests, up to the first one whose result differs.
  /// - Returns: the difference, and how often each fault reason occurred; 0 counts requests that passed.
  package static func explain(
    _ subject: Subject, seed: UInt64, accesses: Int
  ) throws -> (difference: Difference?, verdicts: [UInt8: Int]) {
    var comparison = try Comparison(subject, seed: seed)
    var verdicts: [UInt8: Int] = [:]
    for number in 0..<accesses {
      if let difference = comparison.explainOne(number, &verdicts) { return (difference, verdicts) }
    }
    return (nil, verdicts)
  }

  private mutating func explainOne(_ number: Int, _ verdicts: inout [UInt8: Int]) -> Difference? {
    let input = tables.address(bits: bits)
    let access: DMAAccess = tables.choice(3) == 0 ? .write : .read
    // The explanation gives the rights of a walk; a cached page would skip the walk.
    guest.forgetAll()
    let looks = number % 32 == 0
    let before = looks ? guest.image : []
    let counters = guest.unit.counters
    let explanation = guest.unit.explanation(of: input, for: access, from: Self.source)
    if looks, guest.image != before || !guest.unit.snapshot(of: []).caches.flatMap(\.pages).isEmpty {
      return Difference(description: "\(subject), seed \(seed), request \(number): the explanation left a trace")
    }
    if guest.unit.counters != counters {
      return Difference(description: "\(subject), seed \(seed), request \(number): the explanation was counted")
    }
    let actual: TranslationExplanation.Result
    switch port.answer(input, count: 1, access) {
    case .at(let output, _) where input >> 20 == 0xfee && output == input:
      actual = .interruptRequest
    case .at(let output, _):
      // The cached page shows the size and rights.
      let cached = guest.unit.snapshot(of: []).caches.flatMap(\.pages)
      guard cached.count == 1, let page = cached.first else {
        return Difference(description: "\(subject), seed \(seed), request \(number): \(cached.count) pages cached")
      }
      actual = .page(output: output, size: page.size, readable: page.readable, writable: page.writable)
      verdicts[0, default: 0] += 1
    case .refused:
      let reason = guest.takeFault()?.reason ?? 0
      verdicts[reason, default: 0] += 1
      actual = FaultReason(rawValue: reason).map { .fault($0, isRecorded: true) } ?? .untranslated
    }
    let what = "\(subject), seed \(seed), request \(number): \(access == .write ? "write" : "read") 0x\(hex(input))"
    guard Self.agree(explanation.result, actual, input) else {
      return Difference(description: "\(what): explained as \(explanation.result), and was \(actual)")
    }
    if case .page = actual {
      let steps = explanation.steps + explanation.stepsBelow
      for step in steps + steps.flatMap(\.below) + steps.flatMap(\.belowUpdate) {
        guard let place = step.physicalAddress, guest.load(place) & step.bitsToSet == step.bitsToSet else {
          return Difference(description: "\(what): bits 0x\(hex(step.bitsToSet)) are not set in \(step)")
        }
      }
    }
    return nil
  }

  /// Returns whether the two agree. A page that overlaps the interrupt range is cached as 4 KiB, whatever its size.
  private static func agree(
    _ explained: TranslationExplanation.Result, _ actual: TranslationExplanation.Result, _ input: UInt64
  ) -> Bool {
    guard case .page(let output, let size, let readable, let writable) = explained,
      case .page(output, let cachedSize, readable, writable) = actual
    else { return explained == actual }
    let touches = [input, output].contains { address in
      let first = address & ~(size - 1)
      let last = address | (size - 1)
      return first <= 0xfeef_ffff && last >= 0xfee0_0000
    }
    return cachedSize == (touches ? 0x1000 : size)
  }
}

extension Guest {
  /// The contents of all allocated pages.
  package var image: [UInt8] {
    let start: UInt64 = 0x10_0000
    var bytes = [UInt8](repeating: 0, count: Int(nextPage - start))
    var elements = bytes.mutableSpan
    var span = elements.mutableBytes
    _ = memory.read(from: start, into: &span)
    return bytes
  }
}

/// Compares explanations and requests on root, context and PASID entries with up to two flipped bits.
package struct StructureComparison {
  package private(set) var verdicts: [FaultReason: Int] = [:]
  /// How many faults Fault Processing Disable suppressed.
  package private(set) var suppressed = 0
  package private(set) var difference: String?

  private var random: RandomTables

  package init(seed: UInt64, rounds: Int) throws {
    random = RandomTables(seed: seed)
    for round in 0..<rounds where difference == nil {
      if let found = try self.round() { difference = "seed \(seed), round \(round): \(found)" }
    }
  }

  private mutating func chance(_ count: UInt64) -> Bool { random.choice(count) == 0 }

  private mutating func round() throws -> String? {
    let isLegacy = chance(4)
    let hasFirstStage = chance(2)
    let isNested = chance(2)
    let hasPASIDs = chance(2)
    let hasDeviceTLB = chance(2)
    let snoops = chance(2)
    let guest = try Guest {
      $0.scalableMode = !isLegacy
      $0.firstStage = !isLegacy && hasFirstStage
      $0.nested = $0.firstStage && isNested
      $0.pasidBits = !isLegacy && hasPASIDs ? 20 : 0
      $0.deviceIOTLB = hasDeviceTLB
      $0.snoopControl = snoops
    }
    let source = RequesterID(rawValue: UInt16(random.choice(0x100)))
    var words: [UInt64] = []
    if isLegacy {
      let table = guest.page()
      guest.map(0x1000, in: table, levels: 4, entry: 0x5003, tableBits: Guest.secondStageBits)
      let entries = guest.legacyTables(
        source: source, secondStage: table, type: random.choice(4), addressWidth: random.choice(5),
        faultDisable: chance(2))
      words = [entries.root, entries.root + 8, entries.context, entries.context + 8]
      guest.setRootTable(entries.root, scalable: chance(16))
    } else {
      let first = guest.page()
      let second = guest.page()
      guest.map(0x1000, in: first, levels: 4, entry: 0x5067, tableBits: Guest.firstStageTable)
      for page: UInt64 in 0..<64 {
        guest.map(
          0x10_0000 + page << 12, in: second, levels: 4, entry: 0x10_0003 + page << 12, tableBits: Guest.secondStageBits
        )
      }
      guest.map(0x1000, in: second, levels: 4, entry: 0x5003, tableBits: Guest.secondStageBits)
      let tables = guest.scalableTables(
        source: source,
        words: Guest.pasidEntry(
          type: random.choice(6), firstStage: first, secondStage: second, addressWidth: chance(8) ? 4 : 2,
          first: chance(4) ? 2 : 0, second: chance(2) ? 1 << 23 : 0))
      // Sometimes set FPD in the directory, and PASIDE and RID_PASID in the context entry.
      if chance(8) { guest.store(guest.load(tables.directory) | 2, at: tables.directory) }
      if chance(2) { guest.store(guest.load(tables.context) | 8, at: tables.context) }
      if chance(8) { guest.store(random.choice(0x10_0000), at: tables.context + 8) }
      words = [tables.rootHalf] + (0..<4).map { tables.context + 8 * $0 } + [tables.directory]
      words += (0..<8).map { tables.entry + 8 * $0 }
      guest.setRootTable(tables.root, scalable: !chance(32))
    }
    for _ in 0..<random.choice(3) {
      let place = words[Int(random.choice(UInt64(words.count)))]
      guest.store(guest.load(place) ^ 1 << random.choice(64), at: place)
    }
    guest.enableTranslation()

    let pasids: [UInt32?] = [nil, nil, 0, 0, 1, 64, 0x3fff, 0xf_ffff]
    let pasid = pasids[Int(random.choice(8))]
    let address: UInt64 = chance(8) ? 0xfee0_1000 : chance(8) ? 1 << 60 : 0x1008
    let explanation = guest.unit.explanation(of: address, for: .write, from: source, pasid: pasid)
    let answer = guest.port(source, pasid: pasid).answer(address, count: 4, .write)
    let fault = guest.takeFault()
    switch (explanation.result, answer) {
    case (.interruptRequest, .at(address, _)), (.passThrough, .at(address, _)): return nil
    case (.page(let output, _, _, true), .at(let actual, _)) where actual == output: return nil
    case (.fault(let reason, true), .refused(.translation)) where fault?.reason == reason.rawValue:
      verdicts[reason, default: 0] += 1
      return nil
    case (.fault(let reason, false), .refused(.translation)) where fault == nil && reason.isQualified:
      suppressed += 1
      return nil
    default:
      return "explained as \(explanation.result), and was \(answer) with fault \(String(describing: fault))"
    }
  }
}
