import Hardware
import Testing
import VTdOracle

@testable import VTd

/// Compares the unit's explanations with its behaviour, and its snapshots with the guest's tables.
struct ExplanationTests {
  static let seed: UInt64 = .random(in: .min ... .max)

  @Test("an explanation has the real request's result and no side effect", arguments: Comparison.Subject.allCases)
  func agreement(_ subject: Comparison.Subject) throws {
    var verdicts: [UInt8: Int] = [:]
    for round: UInt64 in 0..<3 {
      let result = try Comparison.explain(subject, seed: Self.seed &+ round, accesses: 300)
      if let difference = result.difference { Issue.record("\(difference)") }
      verdicts.merge(result.verdicts, uniquingKeysWith: +)
    }
    #expect(verdicts.count >= 3, "\(subject), seed \(Self.seed): \(verdicts)")
  }

  @Test("for damaged structures, the explanation has the real request's result") func structuresAgree() throws {
    let comparison = try StructureComparison(seed: Self.seed, rounds: 1500)
    #expect(comparison.difference == nil)
    #expect(comparison.verdicts.count >= 15, "seed \(Self.seed): \(comparison.verdicts)")
    #expect(comparison.suppressed > 0, "seed \(Self.seed)")
  }

  /// A write to 0x3000 in nested translation: four first-stage entries, each reached through four second-stage ones.
  @Test("the explanation of a nested walk contains every entry") func aNestedWalkShowsEveryEntry() throws {
    let guest = try Guest.nested()
    let first = guest.page()
    let second = guest.page()
    guest.map(0x3000, in: first, levels: 4, entry: 0x7000 | 0x27, tableBits: Guest.firstStageTable)
    for page: UInt64 in 0..<64 {
      let address = 0x10_0000 + page << 12
      guest.map(address, in: second, levels: 4, entry: address | 3, tableBits: 3)
    }
    guest.map(0x7000, in: second, levels: 4, entry: 0x9003, tableBits: 3)
    let source = RequesterID(bus: 0, device: 3, function: 0)
    guest.start(
      source, scalable: Guest.pasidEntry(type: 3, firstStage: first, secondStage: second, second: 1 << 23))

    let explanation = guest.unit.explanation(of: 0x3010, for: .write, from: source)
    #expect(explanation.entries.map(\.kind) == [.scalableRoot, .scalableContext, .pasidDirectory, .pasid])
    #expect(explanation.roots?.isNested == true)
    #expect(explanation.roots?.domain == 5)
    #expect(explanation.steps.map(\.level) == [4, 3, 2, 1])
    #expect(explanation.steps.allSatisfy { $0.stage == .first && $0.below.map(\.level) == [4, 3, 2, 1] })
    #expect(explanation.steps[0].address == first)
    #expect(explanation.steps[0].flags == ["P", "R/W", "U/S", "A"])
    let leaf = try #require(explanation.steps.last)
    #expect(leaf.isLeaf)
    #expect(leaf.index == 3)
    #expect(leaf.output == 0x7000)
    #expect(leaf.bitsToSet == 0x40)
    // Setting D writes the page table itself, through the second stage.
    #expect(leaf.belowUpdate.map(\.level) == [4, 3, 2, 1])
    #expect(explanation.stepsBelow.map(\.output).last == 0x9000)
    #expect(explanation.result == .page(output: 0x9010, size: 0x1000, readable: true, writable: true))
  }

  /// The cache differs from the tables because the guest has not invalidated.
  @Test("the explanation shows a stale cached entry") func aStaleEntryIsShown() throws {
    let guest = try Guest.firstStage()
    let root = guest.page()
    guest.map(0x3000, in: root, levels: 4, entry: 0x7000 | Guest.firstStageLeaf, tableBits: Guest.firstStageTable)
    let source = RequesterID(bus: 0, device: 3, function: 0)
    guest.start(source, scalable: Guest.pasidEntry(type: 1, firstStage: root))
    let port = guest.port(source)
    _ = port.answer(0x3000)
    let slot = guest.slot(of: 0x3000, in: root, levels: 4)
    guest.store(0, at: slot)

    let explanation = guest.unit.explanation(of: 0x3008, for: .read, from: source)
    #expect(explanation.result == .fault(.firstStageEntryNotPresent, isRecorded: true))
    #expect(explanation.cached.map(\.output) == [0x7000])
    #expect(explanation.cached.first?.stages == .first)
    #expect(FaultReason.firstStageEntryNotPresent.condition == "SFS.2")
    withExtendedLifetime(port) {}
  }

  @Test("a snapshot contains tables, caches and registers") func aSnapshotHasTablesCachesAndRegisters() throws {
    let guest = try Guest.firstStage { $0.pasidBits = 20 }
    let root = guest.page()
    guest.map(0x3000, in: root, levels: 4, entry: 0x7000 | Guest.firstStageLeaf, tableBits: Guest.firstStageTable)
    let source = RequesterID(bus: 0, device: 3, function: 0)
    let tables = guest.scalableTables(source: source, words: Guest.pasidEntry(type: 1, domain: 9, firstStage: root))
    guest.store(guest.load(tables.context) | 8, at: tables.context)
    // PASID 65, from another directory entry, is pass-through.
    let other = guest.page()
    guest.store(other | 1, at: tables.directory + 8)
    guest.store(0x109, at: other + 64)
    guest.store(4, at: other + 72)
    guest.setRootTable(tables.root, scalable: true)
    guest.enableTranslation()
    let ports = [guest.port(source), guest.port(source, pasid: 65)]
    for port in ports { _ = port.answer(0x3000) }

    let absent = RequesterID(bus: 1, device: 0, function: 0)
    let snapshot = guest.unit.snapshot(of: [source, absent])
    #expect(snapshot.isTranslationEnabled)
    #expect(snapshot.tableMode == .scalable)
    #expect(snapshot.rootTable == tables.root)
    #expect(snapshot.registers.first { $0.mnemonic == "RTADDR" }?.value == tables.root | 0x400)
    #expect(snapshot.sources.map(\.source) == [source, absent])
    #expect(snapshot.sources[0].pasids.map(\.number) == [0, 65])
    #expect(snapshot.sources[0].pasids.map(\.isForRequestsWithout) == [true, false])
    guard case .roots(let roots) = snapshot.sources[0].pasids[0].outcome else {
      Issue.record("PASID 0 has no table roots")
      return
    }
    #expect(roots.domain == 9)
    #expect(roots.firstStage == TableRoots.Root(address: root, levels: 4))
    #expect(snapshot.sources[1].outcome == .fault(.scalableRootEntryNotPresent))
    #expect(snapshot.caches.map(\.requestPASID) == [nil, 65])
    #expect(
      snapshot.caches[0].pages == [
        CachedPage(
          input: 0x3000, output: 0x7000, size: 0x1000, readable: true, writable: true, domain: 9, pasid: 0,
          stages: .first)
      ])
    #expect(snapshot.caches[1].roots?.isPassThrough == true)
    #expect(snapshot.counters == guest.unit.counters)
    withExtendedLifetime(ports) {}
  }

  /// 512 directory entries lead to 64 PASIDs each, which are more than the list may hold.
  @Test("a list of PASIDs is bounded, and marked as cut") func aListingIsBounded() throws {
    let guest = try Guest.firstStage { $0.pasidBits = 20 }
    let source = RequesterID(bus: 0, device: 3, function: 0)
    let tables = guest.scalableTables(source: source, words: Guest.pasidEntry(type: 4))
    guest.store(tables.directory | 7 << 9 | 9, at: tables.context)
    for slot: UInt64 in 0..<512 { guest.store(tables.entry | 1, at: tables.directory + 8 * slot) }
    for slot: UInt64 in 1..<64 { guest.store(0x109, at: tables.entry + 64 * slot) }
    guest.setRootTable(tables.root, scalable: true)
    let found = guest.unit.snapshot(of: [source]).sources[0]
    #expect(found.pasids.count == TableReader.pasidLimit)
    #expect(found.isCut)
  }

  @Test("a snapshot lists refusals cached by caching mode") func refusalsOfCachingModeAreListed() throws {
    let guest = try Guest { $0.cachingMode = true }
    let root = guest.page()
    let one = RequesterID(bus: 0, device: 3, function: 0)
    let tables = guest.legacyTables(source: one, secondStage: root)
    guest.setRootTable(tables.root, scalable: false)
    guest.enableTranslation()
    let ports = [guest.port(one), guest.port(RequesterID(bus: 0, device: 4, function: 0))]
    _ = ports[0].answer(0x5008, .write)
    _ = ports[1].answer(0x5008)
    #expect(
      guest.unit.snapshot(of: []).caches.map(\.refusals) == [
        [CachedRefusal(place: .page(0x5000, domain: 7, write: true), reason: .writePermission)],
        [CachedRefusal(place: .context, reason: .contextEntryNotPresent)],
      ])
    withExtendedLifetime(ports) {}
  }

  @Test("a snapshot lists cached interrupt entries") func interruptEntriesAreListed() throws {
    let guest = try Guest()
    let table = guest.page()
    guest.store(0x0000_0100_0041_0001, at: table + 5 * 16)
    guest.write64(0xb8, table | 7)
    guest.command(set: 24)
    guest.command(set: 25)
    _ = guest.unit.remap(
      InterruptMessage(address: 0xfee0_0010 | 5 << 5, data: 0), from: RequesterID(rawValue: 8), recordFault: false)
    let remapping = guest.unit.snapshot(of: []).interruptRemapping
    #expect(remapping.isEnabled)
    #expect(remapping.entries == 256)
    #expect(remapping.cached == [CachedInterruptEntry(index: 5, low: 0x0000_0100_0041_0001, high: 0)])
  }

  @Test("each fault condition has its own name") func everyConditionHasItsOwnName() {
    let names = FaultReason.allCases.compactMap(\.condition)
    #expect(Set(names).count == names.count)
    #expect(FaultReason.allCases.count - names.count == 7)
  }
}
