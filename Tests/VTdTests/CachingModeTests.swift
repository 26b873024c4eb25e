import Hardware
import Testing
import VTdOracle

@testable import VTd

/// Caching mode (VT-d 6.1): an entry that is not present or malformed stays cached until it is invalidated. Without
/// caching mode, such entries are not cached.
@Suite("caching mode")
struct CachingModeTests {
  let source = RequesterID(bus: 0, device: 3, function: 0)
  private static let input: UInt64 = 0x5000

  /// An entry in the guest's tables that refuses a request, and the value that corrects it.
  private struct Wrong {
    var address: UInt64
    var bad: UInt64
    var good: UInt64
    var reason: UInt8
  }

  /// Corrects the entry. With caching mode, expects that the request is still refused after each of `survivors`, and
  /// passes after each of `removers`. Without caching mode, expects that the request passes at once.
  private func expect(
    _ guest: Guest, _ port: any DMAPort, _ wrong: Wrong, access: DMAAccess = .read, survivors: [[UInt64]],
    removers: [[UInt64]]
  ) {
    for remover in removers {
      guest.store(wrong.bad, at: wrong.address)
      // To make a good entry bad, software must invalidate in every mode.
      #expect(guest.submitAndWait(CacheTests.contextCache(1), CacheTests.iotlb(1)))
      if guest.unit.options.scalableMode { #expect(guest.submitAndWait(CacheTests.pasidCache(3))) }
      #expect(port.answer(Self.input, access) == .refused(.translation))
      #expect(guest.takeFault()?.reason == wrong.reason)
      guest.store(wrong.good, at: wrong.address)
      guard guest.unit.options.cachingMode == true else {
        #expect(port.answer(Self.input, access) == .at(0x20_0000, 8))
        continue
      }
      for survivor in [[4, 0]] + survivors {
        #expect(guest.submitAndWait(survivor))
        #expect(port.answer(Self.input, access) == .refused(.translation), "\(survivor.map { String($0, radix: 16) })")
        #expect(guest.takeFault()?.reason == wrong.reason)
      }
      #expect(guest.submitAndWait(remover))
      #expect(port.answer(Self.input, access) == .at(0x20_0000, 8), "after \(remover.map { String($0, radix: 16) })")
    }
  }

  // MARK: Legacy mode

  private func legacy(_ cachingMode: Bool) throws -> (
    guest: Guest, port: any DMAPort, root: UInt64, context: UInt64, slot: UInt64
  ) {
    let guest = try Guest { $0.cachingMode = cachingMode }
    let table = guest.page()
    guest.map(Self.input, in: table, levels: 4, entry: 0x20_0003, tableBits: 3)
    let (root, context) = guest.legacyTables(source: source, secondStage: table, domain: 7)
    guest.setRootTable(root, scalable: false)
    guest.enableQueue(wide: false)
    guest.enableTranslation()
    return (guest, guest.port(source), root, context, guest.slot(of: Self.input, in: table, levels: 4))
  }

  @Test("a bad legacy context entry is cached only with caching mode, under domain 0", arguments: [true, false])
  func legacyContext(cachingMode: Bool) throws {
    let (guest, port, _, context, _) = try legacy(cachingMode)
    let good = guest.load(context)
    // Not present; with a reserved bit; of a translation type that the unit does not offer.
    for (bad, reason): (UInt64, UInt8) in [(good & ~1, 0x02), (good | 1 << 5, 0x0b), (good | 1 << 2, 0x03)] {
      expect(
        guest, port, Wrong(address: context, bad: bad, good: good, reason: reason),
        survivors: [
          CacheTests.contextCache(2, domain: 7), CacheTests.contextCache(3, source: 0x20),
          CacheTests.contextCache(3, domain: 0, source: 0x19), CacheTests.iotlb(1), CacheTests.iotlb(2, domain: 0),
        ],
        removers: [
          CacheTests.contextCache(1), CacheTests.contextCache(2, domain: 0), CacheTests.contextCache(3, source: 0x18),
          CacheTests.contextCache(3, source: 0x1e, mask: 2),
        ])
    }
  }

  @Test("faults in root entries and tables outside RAM are not cached", arguments: [true, false])
  func notCached(cachingMode: Bool) throws {
    let (guest, port, root, context, _) = try legacy(cachingMode)
    let (rootEntry, contextEntry) = (guest.load(root), guest.load(context))
    for (address, bad, good, reason): (UInt64, UInt64, UInt64, UInt8) in [
      (root, rootEntry & ~1, rootEntry, 0x01), (root, rootEntry | 2, rootEntry, 0x0a),
      (root, rootEntry | 1 << 40, rootEntry, 0x09), (context, contextEntry | 1 << 40, contextEntry, 0x07),
    ] {
      guest.store(bad, at: address)
      #expect(guest.submitAndWait(CacheTests.contextCache(1), CacheTests.iotlb(1)))
      #expect(port.answer(Self.input) == .refused(.translation))
      #expect(guest.takeFault()?.reason == reason)
      guest.store(good, at: address)
      // The context entry whose table is outside RAM is valid itself, so it is cached.
      if reason == 0x07 { #expect(guest.submitAndWait(CacheTests.contextCache(1))) }
      #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    }
  }

  @Test("a refused page of legacy mode is cached only with caching mode, under its domain", arguments: [true, false])
  func legacyPage(cachingMode: Bool) throws {
    let (guest, port, _, _, slot) = try legacy(cachingMode)
    let survivors = [
      CacheTests.iotlb(3, domain: 7, address: 0x6000), CacheTests.iotlb(3, domain: 8, address: Self.input),
      CacheTests.iotlb(2, domain: 8), CacheTests.contextCache(1),
    ]
    let removers = [
      CacheTests.iotlb(1), CacheTests.iotlb(2, domain: 7), CacheTests.iotlb(3, domain: 7, address: Self.input),
      CacheTests.iotlb(3, domain: 7, address: Self.input | 0x40), CacheTests.iotlb(3, domain: 7, address: 0, mask: 3),
    ]
    for (access, bad, reason): (DMAAccess, UInt64, UInt8) in [
      (.read, 0, 0x06), (.write, 0, 0x05), (.write, 0x20_0001, 0x05), (.read, 0x20_0003 | 1 << 50, 0x0c),
    ] {
      expect(
        guest, port, Wrong(address: slot, bad: bad, good: 0x20_0003, reason: reason), access: access,
        survivors: survivors, removers: removers)
    }
  }

  @Test("a cached refusal of a write affects neither reads nor other pages")
  func access() throws {
    let (guest, port, _, _, slot) = try legacy(true)
    guest.store(0x20_0001, at: slot)
    #expect(port.answer(Self.input, .write) == .refused(.translation))
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    #expect(port.answer(Self.input + 0x800, .write) == .refused(.translation))
    guest.store(0x20_0003, at: slot)
    #expect(port.answer(Self.input, .write) == .refused(.translation))
    guest.store(0x30_0003, at: slot + 8)
    #expect(port.answer(Self.input + 0x1000, .write) == .at(0x30_0000, 8))
  }

  @Test("if more pages are refused than the cache holds, some are walked again, and each gets its own result")
  func capacity() throws {
    let (guest, port, _, _, slot) = try legacy(true)
    for page: UInt64 in 1...200 { #expect(port.answer(Self.input + page << 12) == .refused(.translation)) }
    for page: UInt64 in 1...200 { guest.store(0x30_0003 + page << 12, at: slot + 8 * page) }
    var passed = 0
    for page: UInt64 in 1...200 where port.answer(Self.input + page << 12) == .at(0x30_0000 + page << 12, 8) {
      passed += 1
    }
    #expect((1..<200).contains(passed))
    #expect(guest.submitAndWait(CacheTests.iotlb(2, domain: 7)))
    for page: UInt64 in 1...200 { #expect(port.answer(Self.input + page << 12) == .at(0x30_0000 + page << 12, 8)) }
  }

  @Test("suppressed faults are not recorded, whether they are cached or not")
  func suppression() throws {
    let (guest, port, _, context, _) = try legacy(true)
    guest.store(guest.load(context) & ~1 | 2, at: context)
    for _ in 0..<2 {
      #expect(port.answer(Self.input) == .refused(.translation))
      #expect(guest.takeFault() == nil)
    }
    #expect(guest.unit.counters[.faults] == 2)
    #expect(guest.unit.counters[.contextWalks] == 1)
  }

  @Test("setting the root table pointer removes all cached refusals")
  func rootTable() throws {
    let (guest, port, root, context, slot) = try legacy(true)
    let good = guest.load(context)
    guest.store(0, at: context)
    #expect(port.answer(Self.input) == .refused(.translation))
    guest.store(good, at: context)
    #expect(port.answer(Self.input) == .refused(.translation))
    guest.setRootTable(root, scalable: false)
    guest.store(0, at: slot)
    #expect(port.answer(Self.input) == .refused(.translation))
    guest.store(0x20_0003, at: slot)
    #expect(port.answer(Self.input) == .refused(.translation))
    guest.setRootTable(root, scalable: false)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
  }

  // MARK: Scalable mode

  private func scalable(_ cachingMode: Bool, type: UInt64) throws -> (
    guest: Guest, port: any DMAPort, tables: Guest.ScalableTables, first: UInt64, second: UInt64
  ) {
    let guest = try Guest.nested { $0.cachingMode = cachingMode }
    let first = guest.page()
    let second = guest.page()
    if type == 2 {
      guest.map(Self.input, in: second, levels: 4, entry: 0x20_0003, tableBits: 3)
    } else {
      guest.map(Self.input, in: first, levels: 4, entry: 0x20_0067, tableBits: 0x27)
      for page: UInt64 in 0..<0x400 {
        guest.map(page << 12, in: second, levels: 4, entry: page << 12 | 3, tableBits: 3)
      }
    }
    let words = Guest.pasidEntry(type: type, firstStage: first, secondStage: type == 1 ? 0 : second, second: 1 << 23)
    let tables = guest.scalableTables(source: source, words: words)
    guest.setRootTable(tables.root, scalable: true)
    guest.enableQueue(wide: true)
    guest.enableTranslation()
    return (guest, guest.port(source), tables, first, second)
  }

  @Test("a bad scalable context entry is cached only with caching mode", arguments: [true, false])
  func scalableContext(cachingMode: Bool) throws {
    let (guest, port, tables, _, _) = try scalable(cachingMode, type: 1)
    let good = guest.load(tables.context)
    for (bad, reason): (UInt64, UInt8) in [(good & ~1, 0x41), (good | 1 << 5, 0x42)] {
      expect(
        guest, port, Wrong(address: tables.context, bad: bad, good: good, reason: reason),
        survivors: [CacheTests.contextCache(3, source: 0x20), CacheTests.pasidCache(3), CacheTests.iotlb(1)],
        removers: [
          CacheTests.contextCache(1), CacheTests.contextCache(2, domain: 9), CacheTests.contextCache(3, source: 0x18),
        ])
    }
  }

  @Test(
    "a bad PASID-table or directory entry is cached only with caching mode, under its PASID and every domain",
    arguments: [true, false])
  func pasidEntry(cachingMode: Bool) throws {
    let (guest, port, tables, _, _) = try scalable(cachingMode, type: 1)
    let (entry, directory) = (guest.load(tables.entry), guest.load(tables.directory))
    for wrong in [
      Wrong(address: tables.entry, bad: 0, good: entry, reason: 0x59),
      Wrong(address: tables.entry, bad: entry | 1 << 5, good: entry, reason: 0x5a),
      Wrong(address: tables.entry, bad: entry | 7 << 6, good: entry, reason: 0x5b),
      Wrong(address: tables.directory, bad: 0, good: directory, reason: 0x51),
      Wrong(address: tables.directory, bad: directory | 1 << 5, good: directory, reason: 0x52),
    ] {
      expect(
        guest, port, wrong,
        survivors: [
          CacheTests.pasidCache(1, domain: 5, pasid: 1), CacheTests.contextCache(1), CacheTests.iotlb(1),
          CacheTests.pasidIOTLB(2, domain: 5, pasid: 0),
        ],
        removers: [
          CacheTests.pasidCache(3), CacheTests.pasidCache(0, domain: 5), CacheTests.pasidCache(0, domain: 0),
          CacheTests.pasidCache(1, domain: 5, pasid: 0), CacheTests.pasidCache(1, domain: 0, pasid: 0),
        ])
    }
  }

  @Test("a refused second-stage page of scalable mode is cached only with caching mode", arguments: [true, false])
  func secondStage(cachingMode: Bool) throws {
    let (guest, port, _, _, second) = try scalable(cachingMode, type: 2)
    let slot = guest.slot(of: Self.input, in: second, levels: 4)
    for (access, bad, reason): (DMAAccess, UInt64, UInt8) in [
      (.read, 0, 0x79), (.read, 0x20_0003 | 1 << 50, 0x7a), (.write, 0x20_0001, 0x85), (.read, 0x20_0002, 0x86),
    ] {
      expect(
        guest, port, Wrong(address: slot, bad: bad, good: 0x20_0003, reason: reason), access: access,
        survivors: [
          CacheTests.iotlb(3, domain: 5, address: 0x6000), CacheTests.iotlb(2, domain: 6),
          CacheTests.pasidIOTLB(2, domain: 5, pasid: 0), CacheTests.pasidCache(3),
        ],
        removers: [
          CacheTests.iotlb(1), CacheTests.iotlb(2, domain: 5), CacheTests.iotlb(3, domain: 5, address: Self.input),
        ])
    }
  }

  @Test(
    "a second-stage refusal of a first-stage table or page is cached only with caching mode", arguments: [true, false])
  func nested(cachingMode: Bool) throws {
    let (guest, port, _, first, second) = try scalable(cachingMode, type: 3)
    let page = guest.slot(of: 0x20_0000, in: second, levels: 4)
    let root = guest.slot(of: first, in: second, levels: 4)
    let leaf = guest.slot(of: guest.slot(of: Self.input, in: first, levels: 4) & ~0xfff, in: second, levels: 4)
    for (slot, reason) in [(page, UInt8(0x79)), (root, 0x75), (leaf, 0x76)] {
      expect(
        guest, port, Wrong(address: slot, bad: 0, good: guest.load(slot), reason: reason),
        survivors: [
          CacheTests.iotlb(3, domain: 6, address: 0x20_0000), CacheTests.pasidIOTLB(2, domain: 5, pasid: 1),
          CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x6000),
        ],
        removers: [
          CacheTests.iotlb(1), CacheTests.iotlb(2, domain: 5), CacheTests.iotlb(3, domain: 5, address: 0x7000_0000),
          CacheTests.pasidIOTLB(2, domain: 5, pasid: 0),
          CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: Self.input),
        ])
    }
  }

  @Test("a first-stage refusal is never cached", arguments: [1, 3] as [UInt64])
  func firstStage(type: UInt64) throws {
    let (guest, port, _, first, _) = try scalable(true, type: type)
    let slot = guest.slot(of: Self.input, in: first, levels: 4)
    for (bad, reason): (UInt64, UInt8) in [
      (0, 0x71), (0x20_0065, 0x85), (0x20_0063, 0x81), (0x20_0067 | 1 << 50, 0x72),
    ] {
      guest.store(bad, at: slot)
      #expect(guest.submitAndWait(CacheTests.iotlb(1)))
      #expect(port.answer(Self.input, .write) == .refused(.translation))
      #expect(guest.takeFault()?.reason == reason)
      guest.store(0x20_0067, at: slot)
      #expect(port.answer(Self.input, .write) == .at(0x20_0000, 8))
    }
  }
}
