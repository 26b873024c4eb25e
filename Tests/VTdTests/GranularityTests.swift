import Hardware
import Testing
import VTdOracle

@testable import VTd

/// Tests which cached entries an invalidation removes if a request's entries are partly bad or of different types (VT-d
/// 6.5.2.1 to 6.5.2.4).
@Suite("scope of invalidations")
struct GranularityTests {
  let source = RequesterID(bus: 0, device: 3, function: 0)
  private static let input: UInt64 = 0x5000

  /// Sets up scalable mode: `input` is mapped to 0x20_0000 in the first stage and to 0x30_0000 in the second.
  private func started(_ words: (_ first: UInt64, _ second: UInt64) -> (UInt64, UInt64, UInt64)) throws -> (
    guest: Guest, tables: Guest.ScalableTables, first: UInt64, second: UInt64
  ) {
    let guest = try Guest.nested { $0.pasidBits = 20 }
    let first = guest.page()
    let second = guest.page()
    guest.map(Self.input, in: first, levels: 4, entry: 0x20_0067, tableBits: 0x27)
    for page: UInt64 in 0..<0x400 { guest.map(page << 12, in: second, levels: 4, entry: page << 12 | 3, tableBits: 3) }
    guest.map(Self.input, in: second, levels: 4, entry: 0x30_0003, tableBits: 3)
    let tables = guest.scalableTables(source: source, words: words(first, second))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableQueue(wide: true)
    guest.enableTranslation()
    return (guest, tables, first, second)
  }

  private func storeEntry(_ guest: Guest, _ words: (UInt64, UInt64, UInt64), at address: UInt64) {
    guest.store(words.0, at: address)
    guest.store(words.1, at: address + 8)
    guest.store(words.2, at: address + 16)
  }

  @Test("a context entry that refuses a request is not cached")
  func contextThatRefuses() throws {
    let (guest, tables, first, _) = try started { first, _ in Guest.pasidEntry(type: 1, firstStage: first) }
    storeEntry(guest, Guest.pasidEntry(type: 1, firstStage: first), at: tables.entry + 64)
    let port = guest.port(source, pasid: 1)
    // The repetitions matter: a cached entry would not be checked again.
    for _ in 0..<3 {
      #expect(port.answer(Self.input) == .refused(.translation))
      #expect(guest.takeFault()?.reason == 0x45)
    }
    // PASIDE is set without an invalidation, because caching mode is off.
    guest.store(guest.load(tables.context) | 1 << 3, at: tables.context)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
  }

  @Test("a changed RID_PASID takes effect even if its entry is bad, and the former PASID's entry is no longer used")
  func otherPASID() throws {
    let (guest, tables, first, _) = try started { first, _ in Guest.pasidEntry(type: 1, firstStage: first) }
    let port = guest.port(source)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    guest.store(1, at: tables.context + 8)
    #expect(guest.submitAndWait(CacheTests.contextCache(3, source: 0x18)))
    for _ in 0..<3 {
      #expect(port.answer(Self.input) == .refused(.translation))
      #expect(guest.takeFault()?.reason == 0x59)
    }
    storeEntry(guest, Guest.pasidEntry(type: 1, domain: 6, firstStage: first), at: tables.entry + 64)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    // The page now belongs to domain 6 and PASID 1.
    let other = guest.page()
    guest.map(Self.input, in: other, levels: 4, entry: 0x40_0067, tableBits: 0x27)
    storeEntry(guest, Guest.pasidEntry(type: 1, domain: 6, firstStage: other), at: tables.entry + 64)
    for survivor in [
      CacheTests.pasidCache(0, domain: 5), CacheTests.pasidCache(1, domain: 6, pasid: 0),
      CacheTests.pasidIOTLB(2, domain: 6, pasid: 0), CacheTests.pasidIOTLB(2, domain: 5, pasid: 1),
    ] {
      #expect(guest.submitAndWait(survivor))
      #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    }
    #expect(
      guest.submitAndWait(
        CacheTests.pasidCache(1, domain: 6, pasid: 1), CacheTests.pasidIOTLB(2, domain: 6, pasid: 1)))
    #expect(port.answer(Self.input) == .at(0x40_0000, 8))
  }

  @Test("second-stage pages are invalidated by domain and page, not by PASID, and leaves also with IH set")
  func scalableSecondStage() throws {
    let (guest, _, _, second) = try started { _, second in Guest.pasidEntry(type: 2, secondStage: second) }
    let port = guest.port(source)
    let slot = guest.slot(of: Self.input, in: second, levels: 4)
    for remover in [
      CacheTests.iotlb(1), CacheTests.iotlb(2, domain: 5), CacheTests.iotlb(3, domain: 5, address: Self.input),
      CacheTests.iotlb(3, domain: 5, address: Self.input | 0x40), CacheTests.iotlb(3, domain: 5, address: 0, mask: 18),
      CacheTests.iotlb(3, domain: 5, address: 0xfedc << 48 | Self.input),
    ] {
      guest.store(0x30_0003, at: slot)
      #expect(guest.submitAndWait(CacheTests.iotlb(1)))
      #expect(port.answer(Self.input) == .at(0x30_0000, 8))
      guest.store(0x50_0003, at: slot)
      for survivor in [
        CacheTests.iotlb(2, domain: 6), CacheTests.iotlb(3, domain: 6, address: Self.input),
        CacheTests.iotlb(3, domain: 5, address: Self.input + 0x1000),
        CacheTests.iotlb(3, domain: 5, address: 0x8000, mask: 3), CacheTests.pasidIOTLB(2, domain: 5, pasid: 0),
        CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: Self.input), CacheTests.pasidCache(3),
        CacheTests.contextCache(1),
      ] {
        #expect(guest.submitAndWait(survivor))
        #expect(port.answer(Self.input) == .at(0x30_0000, 8), "after \(survivor.map { String($0, radix: 16) })")
      }
      #expect(guest.submitAndWait(remover))
      #expect(port.answer(Self.input) == .at(0x50_0000, 8), "after \(remover.map { String($0, radix: 16) })")
    }
  }

  @Test("a large second-stage page is invalidated by any page in it")
  func largeSecondStagePage() throws {
    let (guest, _, _, second) = try started { _, second in Guest.pasidEntry(type: 2, secondStage: second) }
    guest.map(0x8000_0000, in: second, levels: 4, entry: 0x40_0083, atLevel: 2, tableBits: 3)
    let slot = guest.slot(of: 0x8000_0000, in: second, levels: 4, level: 2)
    let port = guest.port(source)
    #expect(port.answer(0x8010_0000) == .at(0x50_0000, 8))
    guest.store(0x60_0083, at: slot)
    #expect(guest.submitAndWait(CacheTests.iotlb(3, domain: 5, address: 0x8020_0000)))
    #expect(port.answer(0x8010_0000) == .at(0x50_0000, 8))
    #expect(guest.submitAndWait(CacheTests.iotlb(3, domain: 5, address: 0x801f_f000)))
    #expect(port.answer(0x8010_0000) == .at(0x70_0000, 8))
  }

  @Test("a nested PASID-table entry is invalidated by its domain and PASID, and pages by first-stage address")
  func nested() throws {
    let (guest, tables, first, second) = try started { first, second in
      Guest.pasidEntry(type: 3, firstStage: first, secondStage: second, second: 1 << 23)
    }
    let port = guest.port(source)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    // Change to the second stage alone.
    let other = Guest.pasidEntry(type: 2, secondStage: second)
    let own = Guest.pasidEntry(type: 3, firstStage: first, secondStage: second, second: 1 << 23)
    for remover in [
      CacheTests.pasidCache(3), CacheTests.pasidCache(0, domain: 5), CacheTests.pasidCache(1, domain: 5, pasid: 0),
    ] {
      storeEntry(guest, other, at: tables.entry)
      for survivor in [
        CacheTests.pasidCache(0, domain: 6), CacheTests.pasidCache(1, domain: 5, pasid: 1),
        CacheTests.pasidCache(1, domain: 6, pasid: 0), CacheTests.contextCache(1), CacheTests.iotlb(1),
      ] {
        #expect(guest.submitAndWait(survivor))
        #expect(port.answer(Self.input) == .at(0x20_0000, 8))
      }
      #expect(guest.submitAndWait(remover))
      // Cached pages of nested translation must not serve the second stage alone.
      #expect(port.answer(Self.input) == .at(0x30_0000, 8))
      storeEntry(guest, own, at: tables.entry)
      #expect(guest.submitAndWait(remover))
      #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    }
    let slot = guest.slot(of: Self.input, in: first, levels: 4)
    guest.store(0x21_0067, at: slot)
    for survivor in [
      CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: Self.input + 0x1000),
      CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x20_0000), CacheTests.iotlb(3, domain: 6),
      CacheTests.iotlb(2, domain: 6), CacheTests.pasidIOTLB(3, domain: 6, pasid: 0, address: Self.input),
    ] {
      #expect(guest.submitAndWait(survivor))
      #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    }
    #expect(guest.submitAndWait(CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: Self.input | 0x40)))
    #expect(port.answer(Self.input) == .at(0x21_0000, 8))
  }

  @Test("invalidating a second-stage page removes all nested entries of its domain")
  func nestedBySecondStagePage() throws {
    let (guest, _, first, _) = try started { first, second in
      Guest.pasidEntry(type: 3, firstStage: first, secondStage: second, second: 1 << 23)
    }
    let port = guest.port(source)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    guest.store(0x21_0067, at: guest.slot(of: Self.input, in: first, levels: 4))
    #expect(guest.submitAndWait(CacheTests.iotlb(3, domain: 6, address: 0x9000)))
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    #expect(guest.submitAndWait(CacheTests.iotlb(3, domain: 5, address: 0x9000)))
    #expect(port.answer(Self.input) == .at(0x21_0000, 8))
  }

  @Test("a pass-through entry is invalidated by its domain as well")
  func passThrough() throws {
    let (guest, tables, first, _) = try started { _, _ in Guest.pasidEntry(type: 4) }
    let port = guest.port(source)
    #expect(port.answer(Self.input) == .at(Self.input, 8))
    storeEntry(guest, Guest.pasidEntry(type: 1, firstStage: first), at: tables.entry)
    for survivor in [CacheTests.pasidCache(0, domain: 6), CacheTests.pasidCache(1, domain: 5, pasid: 2)] {
      #expect(guest.submitAndWait(survivor))
      #expect(port.answer(Self.input) == .at(Self.input, 8))
    }
    #expect(guest.submitAndWait(CacheTests.pasidCache(0, domain: 5)))
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
  }

  @Test(
    "the function mask of a context-cache invalidation excludes bits of the function number",
    arguments: [0, 1, 2, 3] as [UInt64])
  func functionMask(mask: UInt64) throws {
    let (guest, tables, _, _) = try started { _, _ in Guest.pasidEntry(type: 4) }
    let port = guest.port(source)
    let good = guest.load(tables.context)
    let ignored: [UInt64] = [0, 4, 6, 7]
    for function: UInt64 in 0..<8 {
      #expect(port.answer(Self.input) == .at(Self.input, 8))
      guest.store(0, at: tables.context)
      #expect(guest.submitAndWait(CacheTests.contextCache(3, source: 0x18 | function, mask: mask)))
      let isNamed = function & ~ignored[Int(mask)] == 0
      #expect(port.answer(Self.input) == (isNamed ? .refused(.translation) : .at(Self.input, 8)), "\(function)")
      guest.store(good, at: tables.context)
      #expect(guest.submitAndWait(CacheTests.contextCache(1)))
    }
  }
}
