import Hardware
import Testing
import VTdOracle

@testable import VTd

/// Entries stay cached until the guest invalidates them. Each granularity removes at least what it names.
@Suite("caches and invalidation")
struct CacheTests {
  let source = RequesterID(bus: 0, device: 3, function: 0)

  /// Invalidation descriptors.
  static func contextCache(_ granularity: UInt64, domain: UInt64 = 0, source: UInt64 = 0, mask: UInt64 = 0) -> [UInt64]
  { [1 | granularity << 4 | domain << 16 | source << 32 | mask << 48, 0] }
  static func iotlb(_ granularity: UInt64, domain: UInt64 = 0, address: UInt64 = 0, mask: UInt64 = 0) -> [UInt64] {
    [2 | granularity << 4 | domain << 16, address | mask]
  }
  static func pasidIOTLB(_ granularity: UInt64, domain: UInt64, pasid: UInt64, address: UInt64 = 0, mask: UInt64 = 0)
    -> [UInt64]
  { [6 | granularity << 4 | domain << 16 | pasid << 32, address | mask] }
  static func pasidCache(_ granularity: UInt64, domain: UInt64 = 0, pasid: UInt64 = 0) -> [UInt64] {
    [7 | granularity << 4 | domain << 16 | pasid << 32, 0]
  }

  // MARK: First stage

  /// Maps 600 pages in domain 5, page n from 0x1_0000_0000 + n * 4 KiB to 0x20_0000 + n * 4 KiB, and a 2 MiB page at
  /// 0x8000_0000.
  func firstStage(nested: Bool = false) throws -> (
    guest: Guest, port: any DMAPort, table: UInt64, tables: Guest.ScalableTables
  ) {
    let guest = nested ? try Guest.nested() : try Guest.firstStage()
    let table = guest.page()
    for n: UInt64 in 0..<600 {
      guest.map(
        0x1_0000_0000 + n * 0x1000, in: table, levels: 4, entry: (0x20_0000 + n * 0x1000) | 0x67, tableBits: 0x27)
    }
    guest.map(0x8000_0000, in: table, levels: 4, entry: 0x60_00e7, atLevel: 2, tableBits: 0x27)
    let tables = guest.scalableTables(source: source, words: Guest.pasidEntry(type: 1, firstStage: table))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableQueue(wide: true)
    guest.enableTranslation()
    return (guest, guest.port(source), table, tables)
  }

  func page(_ n: UInt64) -> UInt64 { 0x1_0000_0000 + n * 0x1000 }

  @Test("a page stays cached until an invalidation of its PASID, its domain or itself")
  func pages() throws {
    let (guest, port, table, _) = try firstStage()
    let slot = guest.slot(of: page(3), in: table, levels: 4)
    let survivors: [[UInt64]] = [
      Self.pasidIOTLB(2, domain: 6, pasid: 0), Self.pasidIOTLB(2, domain: 5, pasid: 1),
      Self.pasidIOTLB(3, domain: 5, pasid: 0, address: page(4)),
      Self.pasidIOTLB(3, domain: 5, pasid: 0, address: page(4), mask: 2),
      Self.pasidIOTLB(3, domain: 6, pasid: 0, address: page(3)),
      Self.iotlb(2, domain: 6), Self.iotlb(3, domain: 6, address: page(3)),
      Self.contextCache(1), Self.contextCache(3, source: 0x18), Self.pasidCache(3), Self.pasidCache(0, domain: 5),
      Self.pasidCache(1, domain: 5), [4, 0],
    ]
    let removers: [[UInt64]] = [
      Self.pasidIOTLB(2, domain: 5, pasid: 0), Self.pasidIOTLB(3, domain: 5, pasid: 0, address: page(3)),
      Self.pasidIOTLB(3, domain: 5, pasid: 0, address: page(0), mask: 2),
      Self.pasidIOTLB(3, domain: 5, pasid: 0, address: page(3), mask: 2),
      Self.pasidIOTLB(3, domain: 5, pasid: 0, address: 0, mask: 40),
      Self.pasidIOTLB(3, domain: 5, pasid: 0, address: page(3) | 0x40),
      Self.pasidIOTLB(3, domain: 5, pasid: 0, mask: 63),
      // Bits from MGAW up are ignored.
      Self.pasidIOTLB(3, domain: 5, pasid: 0, address: 0xabcd << 48 | page(3)),
      // An invalidation by second-stage address removes all first-stage entries of the domain.
      Self.iotlb(3, domain: 5, address: page(3)), Self.iotlb(3, domain: 5, address: 0x5000),
      Self.iotlb(1), Self.iotlb(2, domain: 5),
    ]
    for remover in removers {
      guest.store(0x20_3067, at: slot)
      #expect(guest.submitAndWait(Self.iotlb(1)))
      #expect(port.answer(page(3)) == .at(0x20_3000, 8))
      guest.store(0, at: slot)
      for survivor in survivors {
        #expect(guest.submitAndWait(survivor))
        #expect(port.answer(page(3)) == .at(0x20_3000, 8), "stale, after \(survivor.map { String($0, radix: 16) })")
      }
      #expect(guest.submitAndWait(remover))
      #expect(port.answer(page(3)) == .refused(.translation), "after \(remover.map { String($0, radix: 16) })")
      #expect(guest.takeFault()?.reason == 0x71)
    }
  }

  @Test("disabling translation empties the caches only if the unit has scalable mode")
  func translationDisabled() throws {
    let (guest, port, table, _) = try firstStage()
    #expect(port.answer(page(3)) == .at(0x20_3000, 8))
    guest.store(0x40_0067, at: guest.slot(of: page(3), in: table, levels: 4))
    guest.command(clear: 31)
    guest.command(set: 31)
    #expect(port.answer(page(3)) == .at(0x40_0000, 8))

    let legacy = try Guest()
    let second = legacy.page()
    legacy.map(0x5000, in: second, levels: 4, entry: 0x20_0003, tableBits: 3)
    legacy.setRootTable(legacy.legacyTables(source: source, secondStage: second).root, scalable: false)
    legacy.enableTranslation()
    let legacyPort = legacy.port(source)
    #expect(legacyPort.answer(0x5000) == .at(0x20_0000, 8))
    legacy.store(0x40_0003, at: legacy.slot(of: 0x5000, in: second, levels: 4))
    legacy.command(clear: 31)
    legacy.command(set: 31)
    #expect(legacyPort.answer(0x5000) == .at(0x20_0000, 8))
  }

  @Test("a page in the upper canonical half is invalidated whether the descriptor's bits above MGAW are set or clear")
  func upperHalf() throws {
    let (guest, port, table, _) = try firstStage()
    let address: UInt64 = 0xffff_8000_0000_5000
    guest.map(address, in: table, levels: 4, entry: 0x20_0067, tableBits: 0x27)
    let slot = guest.slot(of: address, in: table, levels: 4)
    for written in [address, address & .lowBits(48)] {
      guest.store(0x20_0067, at: slot)
      #expect(guest.submitAndWait(Self.iotlb(1)))
      #expect(port.answer(address) == .at(0x20_0000, 8))
      guest.store(0x40_0067, at: slot)
      #expect(guest.submitAndWait(Self.pasidIOTLB(3, domain: 5, pasid: 0, address: written)))
      #expect(port.answer(address) == .at(0x40_0000, 8))
    }
  }

  @Test("an invalidation of any page within a large page removes the large page")
  func largePage() throws {
    let (guest, port, table, _) = try firstStage()
    #expect(port.answer(0x8012_3456) == .at(0x72_3456, 8))
    guest.store(0, at: guest.slot(of: 0x8000_0000, in: table, levels: 4, level: 2))
    #expect(guest.submitAndWait(Self.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x8020_0000)))
    #expect(port.answer(0x8000_0000) == .at(0x60_0000, 8))
    #expect(guest.submitAndWait(Self.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x801f_f000)))
    #expect(port.answer(0x8000_0000) == .refused(.translation))
  }

  @Test("an invalidation of 512 pages removes these and leaves a page after them")
  func largeRange() throws {
    let (guest, port, table, _) = try firstStage()
    for n: UInt64 in 0..<600 { #expect(port.answer(page(n)) == .at(0x20_0000 + n * 0x1000, 8)) }
    for n: UInt64 in 0..<600 { guest.store(0, at: guest.slot(of: page(n), in: table, levels: 4)) }
    // 512 pages from the first one. The pages after them may still be cached, or may have been evicted.
    #expect(guest.submitAndWait(Self.pasidIOTLB(3, domain: 5, pasid: 0, address: page(0), mask: 9)))
    for n: UInt64 in 0..<512 { #expect(port.answer(page(n)) == .refused(.translation)) }
    #expect(port.answer(page(599)) == .at(0x20_0000 + 599 * 0x1000, 8))
  }

  @Test("a full cache evicts entries, and each page keeps its own translation")
  func capacity() throws {
    let (guest, port, _, _) = try firstStage()
    for _ in 0..<3 {
      for n: UInt64 in 0..<600 { #expect(port.answer(page(n) + n) == .at(0x20_0000 + n * 0x1001, 8)) }
    }
    let counters = guest.unit.counters
    #expect(counters[.iotlbHits] > 0)
    #expect(counters[.iotlbMisses] >= 600)
    #expect(counters[.iotlbHits] + counters[.iotlbMisses] == 1800)
  }

  @Test("a PASID-table entry stays cached until a PASID-cache invalidation names it")
  func pasidEntry() throws {
    let (guest, port, _, tables) = try firstStage()
    let other = guest.page()
    guest.map(page(0), in: other, levels: 4, entry: 0x50_0067, tableBits: 0x27)
    let survivors: [[UInt64]] = [
      Self.pasidCache(0, domain: 6), Self.pasidCache(1, domain: 5, pasid: 1), Self.pasidCache(1, domain: 6, pasid: 0),
      Self.iotlb(1), Self.contextCache(1), Self.contextCache(2, domain: 5), Self.contextCache(3, source: 0x18),
    ]
    for remover in [Self.pasidCache(0, domain: 5), Self.pasidCache(1, domain: 5, pasid: 0), Self.pasidCache(3)] {
      #expect(port.answer(page(0)) == .at(0x20_0000, 8))
      let first = guest.load(tables.entry + 16)
      guest.store(other, at: tables.entry + 16)
      for survivor in survivors {
        #expect(guest.submitAndWait(survivor, Self.iotlb(1)))
        #expect(port.answer(page(0)) == .at(0x20_0000, 8), "stale, after \(survivor.map { String($0, radix: 16) })")
      }
      #expect(guest.submitAndWait(remover))
      // The page is still cached under the same domain.
      #expect(port.answer(page(0)) == .at(0x20_0000, 8))
      #expect(guest.submitAndWait(Self.iotlb(1)))
      #expect(port.answer(page(0)) == .at(0x50_0000, 8))
      guest.store(first, at: tables.entry + 16)
      #expect(guest.submitAndWait(Self.pasidCache(3), Self.iotlb(1)))
      #expect(port.answer(page(0)) == .at(0x20_0000, 8))
    }
  }

  @Test("a scalable context entry stays cached until a global or domain invalidation, or one that names its device")
  func scalableContext() throws {
    let (guest, port, _, tables) = try firstStage()
    #expect(port.answer(page(0)) == .at(0x20_0000, 8))
    let good = guest.load(tables.context)
    let removers = [
      Self.contextCache(1), Self.contextCache(2, domain: 99), Self.contextCache(3, source: 0x18),
      Self.contextCache(3, source: 0x1f, mask: 3), Self.contextCache(3, source: 0x1c, mask: 1),
    ]
    for remover in removers {
      guest.store(0, at: tables.context)
      for survivor in [
        Self.contextCache(3, source: 0x19), Self.contextCache(3, source: 0x1c),
        Self.contextCache(3, source: 0x20, mask: 3),
        Self.pasidCache(3), Self.iotlb(1),
      ] {
        #expect(guest.submitAndWait(survivor))
        #expect(port.answer(page(0)) == .at(0x20_0000, 8))
      }
      #expect(guest.submitAndWait(remover))
      #expect(port.answer(page(0)) == .refused(.translation))
      #expect(guest.takeFault()?.reason == 0x41)
      // An entry that is not present is not cached.
      guest.store(good, at: tables.context)
      #expect(port.answer(page(0)) == .at(0x20_0000, 8))
    }
  }

  // MARK: Second stage

  @Test("in legacy mode, contexts are invalidated per device or domain, pages per page or domain, and both globally")
  func legacy() throws {
    let guest = try Guest()
    let table = guest.page()
    guest.map(0x5000, in: table, levels: 4, entry: 0x20_0003, tableBits: 3)
    let (root, context) = guest.legacyTables(source: source, secondStage: table, domain: 7)
    guest.setRootTable(root, scalable: false)
    guest.enableQueue(wide: false)
    guest.enableTranslation()
    let port = guest.port(source)
    let slot = guest.slot(of: 0x5000, in: table, levels: 4)
    for remover in [
      Self.iotlb(1), Self.iotlb(2, domain: 7), Self.iotlb(3, domain: 7, address: 0x5000),
      Self.iotlb(3, domain: 7, address: 0, mask: 3),
    ] {
      guest.store(0x20_0003, at: slot)
      #expect(port.answer(0x5000) == .at(0x20_0000, 8))
      guest.store(0, at: slot)
      for survivor in [
        Self.iotlb(2, domain: 8), Self.iotlb(3, domain: 7, address: 0x6000), Self.iotlb(3, domain: 8, address: 0x5000),
        Self.contextCache(1),
      ] {
        #expect(guest.submitAndWait(survivor))
        #expect(port.answer(0x5000) == .at(0x20_0000, 8))
      }
      #expect(guest.submitAndWait(remover))
      #expect(port.answer(0x5000) == .refused(.translation))
      #expect(guest.takeFault()?.reason == 0x06)
    }
    guest.store(0x20_0003, at: slot)
    #expect(port.answer(0x5000) == .at(0x20_0000, 8))
    let good = guest.load(context)
    for remover in [Self.contextCache(1), Self.contextCache(2, domain: 7), Self.contextCache(3, source: 0x18)] {
      guest.store(0, at: context)
      for survivor in [Self.contextCache(2, domain: 8), Self.contextCache(3, domain: 7, source: 0x20), Self.iotlb(1)] {
        #expect(guest.submitAndWait(survivor))
        #expect(port.answer(0x5000) == .at(0x20_0000, 8))
      }
      #expect(guest.submitAndWait(remover))
      #expect(port.answer(0x5000) == .refused(.translation))
      #expect(guest.takeFault()?.reason == 0x02)
      guest.store(good, at: context)
      #expect(port.answer(0x5000) == .at(0x20_0000, 8))
    }
  }

  @Test("nested pages are invalidated by PASID, by domain and by any second-stage page of the domain")
  func nested() throws {
    let (guest, port, table, tables) = try firstStage(nested: true)
    // The second stage identity-maps the first 1 GiB with one page.
    let second = guest.page()
    guest.map(0, in: second, levels: 4, entry: 0x83, atLevel: 3, tableBits: 3)
    guest.store(second | 3 << 6 | 2 << 2 | 1, at: tables.entry)
    guest.store(5 | 1 << 23, at: tables.entry + 8)
    let slot = guest.slot(of: page(3), in: table, levels: 4)
    for remover in [
      Self.pasidIOTLB(2, domain: 5, pasid: 0), Self.pasidIOTLB(3, domain: 5, pasid: 0, address: page(3)),
      Self.iotlb(2, domain: 5), Self.iotlb(3, domain: 5, address: 0x7777_0000), Self.iotlb(1),
    ] {
      guest.store(0x20_3067, at: slot)
      #expect(port.answer(page(3)) == .at(0x20_3000, 8))
      guest.store(0, at: slot)
      for survivor in [Self.iotlb(3, domain: 6, address: page(3)), Self.pasidIOTLB(2, domain: 5, pasid: 9)] {
        #expect(guest.submitAndWait(survivor))
        #expect(port.answer(page(3)) == .at(0x20_3000, 8))
      }
      #expect(guest.submitAndWait(remover))
      #expect(port.answer(page(3)) == .refused(.translation))
      _ = guest.takeFault()
    }
  }

  @Test("an invalidation reaches every port, and the unit keeps the counts of a port that is gone")
  func ports() throws {
    let (guest, port, table, _) = try firstStage()
    var other: (any DMAPort)? = guest.port(source)
    #expect(port.answer(page(1)) == .at(0x20_1000, 8))
    #expect(other?.answer(page(1)) == .at(0x20_1000, 8))
    guest.store(0, at: guest.slot(of: page(1), in: table, levels: 4))
    #expect(guest.submitAndWait(Self.iotlb(1)))
    #expect(port.answer(page(1)) == .refused(.translation))
    #expect(other?.answer(page(1)) == .refused(.translation))
    let before = guest.unit.counters
    other = nil
    _ = guest.port(RequesterID(rawValue: 0x100))
    #expect(guest.unit.counters == before)
    #expect(before[.iotlbInvalidations] == 1)
    #expect(before[.faults] == 2)
    #expect(before[.waits] == 1)
  }

  @Test("observers receive each invalidation in order, before the wait completes")
  func observers() throws {
    let (guest, _, _, _) = try firstStage()
    _ = guest.observer.take()
    let memory = guest.memory
    let status = guest.statusPage
    guest.observer.onInvalidation { #expect(memory.loadUInt32(at: status) == 0) }
    let interruptEntries: [UInt64] = [4 | 1 << 4 | 2 << 27 | 9 << 32, 0]
    #expect(
      guest.submitAndWait(
        Self.pasidCache(1, domain: 5, pasid: 3), Self.pasidIOTLB(3, domain: 5, pasid: 3, address: 0x7040, mask: 1),
        interruptEntries, Self.iotlb(3, domain: 6, address: 0x9000)))
    guest.observer.onInvalidation {}
    let expected: [Invalidation] = [
      .pasid(3, domain: 5),
      .pagesOfPASID(3, domain: 5, PageRange(address: 0x6000, addressMask: 1), leafOnly: true),
      .interruptEntries(8...11),
      .pagesOfDomain(6, PageRange(address: 0x9000, addressMask: 0), leafOnly: false),
    ]
    #expect(guest.observer.take() == expected)
    guest.unit.removeObserver(guest.observer)
    #expect(guest.submitAndWait(Self.iotlb(1)))
    #expect(guest.observer.take().isEmpty)
  }
}
