import Hardware
import Testing
import VTdOracle

@testable import VTd

@Suite("first stage in scalable mode")
struct FirstStageTests {
  let source = RequesterID(bus: 0, device: 3, function: 0)

  struct Setup {
    let guest: Guest
    let port: any DMAPort
    let table: UInt64
    let tables: Guest.ScalableTables
  }

  /// Sets up one page at 0x7f00_1234_5000: read-write, with accessed and dirty bits set.
  func start(
    source: RequesterID? = nil, first: UInt64 = 0, second: UInt64 = 0, third: UInt64 = 0, levels: Int = 4,
    options: (inout UnitOptions) -> Void = { _ in }
  ) throws -> Setup {
    let source = source ?? self.source
    let guest = try Guest.firstStage(options)
    let table = guest.page()
    guest.map(
      0x7f00_1234_5000, in: table, levels: levels, entry: 0x20_0000 | Guest.firstStageLeaf,
      tableBits: Guest.firstStageTable)
    let tables = guest.scalableTables(
      source: source,
      words: Guest.pasidEntry(
        type: 1, firstStage: table, first: first, second: second, third: third | (levels == 5 ? 4 : 0)))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableTranslation()
    return Setup(guest: guest, port: guest.port(source), table: table, tables: tables)
  }

  @Test("with 4 and 5 levels, a page is walked once and then answered from the cache", arguments: [4, 5])
  func page(levels: Int) throws {
    let setup = try start(levels: levels) { if levels == 5 { $0.addressWidth = 57 } }
    #expect(setup.port.answer(0x7f00_1234_5678, count: 0x1000) == .at(0x20_0678, 0x988))
    #expect(setup.port.answer(0x7f00_1234_5678, .write) == .at(0x20_0678, 8))
    let counters = setup.guest.unit.counters
    #expect(counters[.firstStageWalks] == 1)
    #expect(counters[.iotlbHits] == 1)
    #expect(counters[.iotlbMisses] == 1)
    #expect(counters[.contextWalks] == 1)
    #expect(counters[.pasidWalks] == 1)
  }

  @Test("devices above 15 use the upper context table")
  func upperContext() throws {
    let source = RequesterID(bus: 9, device: 17, function: 3)
    let setup = try start(source: source)
    #expect(setup.port.answer(0x7f00_1234_5000) == .at(0x20_0000, 8))
  }

  @Test("unsupported paging modes are faults", arguments: [1, 2, 3] as [UInt64])
  func pagingMode(mode: UInt64) throws {
    let setup = try start(third: mode << 2)
    #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation))
    #expect(setup.guest.takeFault()?.reason == 0x5b)
  }

  @Test("large pages are translated, and 1 GiB pages only where offered", arguments: [true, false])
  func largePages(gigabyte: Bool) throws {
    let setup = try start { $0.fs1gp = gigabyte }
    let guest = setup.guest
    guest.map(0x4020_0000, in: setup.table, levels: 4, entry: 0x60_00e7, atLevel: 2, tableBits: 0x27)
    guest.map(0x1_8000_0000, in: setup.table, levels: 4, entry: 0x4000_00e7, atLevel: 3, tableBits: 0x27)
    #expect(setup.port.answer(0x4023_4567, count: 1 << 30) == .at(0x63_4567, 0x20_0000 - 0x3_4567))
    if gigabyte {
      #expect(setup.port.answer(0x1_8765_4321, count: .max) == .at(0x4765_4321, 0x4000_0000 - 0x765_4321))
    } else {
      #expect(setup.port.answer(0x1_8765_4321) == .refused(.translation))
      #expect(guest.takeFault()?.reason == 0x72)
    }
    // Bit 12 of a large leaf is PAT; the address bits above it are reserved.
    guest.map(0x4040_0000, in: setup.table, levels: 4, entry: 0x60_10e7, atLevel: 2, tableBits: 0x27)
    guest.map(0x4060_0000, in: setup.table, levels: 4, entry: 0x60_20e7, atLevel: 2, tableBits: 0x27)
    #expect(setup.port.answer(0x4040_0000) == .at(0x60_0000, 8))
    #expect(setup.port.answer(0x4060_0000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x72)
  }

  @Test("a non-canonical address is a fault")
  func canonical() throws {
    let setup = try start()
    setup.guest.map(
      0xffff_8000_0000_0000, in: setup.table, levels: 4, entry: 0x20_1067, tableBits: Guest.firstStageTable)
    #expect(setup.port.answer(0xffff_8000_0000_0010) == .at(0x20_1010, 8))
    for address: UInt64 in [0x0000_8000_0000_0000, 0x8000_0000_0000_0000, 0xffff_7fff_ffff_f000] {
      #expect(setup.port.answer(address) == .refused(.translation))
      #expect(setup.guest.takeFault()?.reason == 0x80)
    }
  }

  @Test("present, R/W and U/S are checked at every level")
  func permissions() throws {
    let setup = try start()
    let guest = setup.guest
    for level in 1...4 {
      let slot = guest.slot(of: 0x7f00_1234_5000, in: setup.table, levels: 4, level: level)
      let good = guest.load(slot)
      func expect(_ change: UInt64, _ access: DMAAccess, _ reason: UInt8?) {
        guest.store(good & ~change, at: slot)
        guest.forgetAll()
        let answer = setup.port.answer(0x7f00_1234_5000, access)
        #expect(answer == (reason == nil ? .at(0x20_0000, 8) : .refused(.translation)), "level \(level)")
        #expect(guest.takeFault()?.reason == reason, "level \(level)")
      }
      expect(1, .read, 0x71)
      expect(2, .read, nil)
      expect(2, .write, 0x85)
      expect(4, .read, 0x81)
      expect(4, .write, 0x81)
      guest.store(good, at: slot)
    }
  }

  @Test("reserved bits and tables outside RAM are faults at every level")
  func badEntries() throws {
    let setup = try start()
    let guest = setup.guest
    for level in 1...4 {
      let slot = guest.slot(of: 0x7f00_1234_5000, in: setup.table, levels: 4, level: level)
      let good = guest.load(slot)
      guest.store(good | 1 << 50, at: slot)
      #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation))
      #expect(guest.takeFault()?.reason == 0x72)
      // Bits 62:52 are ignored, and so is bit 63 without execute requests.
      guest.store(good | 0xfff << 52, at: slot)
      #expect(setup.port.answer(0x7f00_1234_5000) == .at(0x20_0000, 8))
      guest.forgetAll()
      if level > 1 {
        guest.store(0x70_0000_0027, at: slot)
        #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation))
        #expect(guest.takeFault()?.reason == 0x70)
      }
      guest.store(good, at: slot)
    }
    let top = guest.slot(of: 0x7f00_1234_5000, in: setup.table, levels: 4, level: 4)
    guest.store(guest.load(top) | 0x80, at: top)
    #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x72)
  }

  @Test("a first-stage root outside RAM or beyond the host address width is a fault")
  func badRoot() throws {
    let setup = try start()
    setup.guest.store(0x70_0000_0000, at: setup.tables.entry + 16)
    #expect(setup.port.answer(0x1000) == .refused(.translation))
    #expect(setup.guest.takeFault()?.reason == 0x73)
    setup.guest.store(1 << 48, at: setup.tables.entry + 16)
    setup.guest.write64(0x20, setup.tables.root | 0x400)
    setup.guest.command(set: 30)
    #expect(setup.port.answer(0x1000) == .refused(.translation))
    #expect(setup.guest.takeFault()?.reason == 0x5a)
  }

  @Test("an output address in the interrupt range is a fault")
  func interruptOutput() throws {
    let setup = try start()
    setup.guest.map(0x5000, in: setup.table, levels: 4, entry: 0xfee0_1067, tableBits: 0x27)
    #expect(setup.port.answer(0x5000) == .refused(.translation))
    #expect(setup.guest.takeFault()?.reason == 0x87)
  }

  @Test("a read sets accessed bits at every level, and a write sets the leaf's dirty bit, even after a cached read")
  func accessedDirty() throws {
    let setup = try start()
    let guest = setup.guest
    guest.map(0x4000_0000, in: setup.table, levels: 4, entry: 0x20_5007, tableBits: 0x7)
    let slots = (1...4).map { guest.slot(of: 0x4000_0000, in: setup.table, levels: 4, level: $0) }
    #expect(setup.port.answer(0x4000_0000) == .at(0x20_5000, 8))
    #expect(slots.allSatisfy { guest.load($0) & 0x20 != 0 })
    #expect(guest.load(slots[0]) == 0x20_5027)
    #expect(setup.port.answer(0x4000_0000) == .at(0x20_5000, 8))
    #expect(guest.unit.counters[.iotlbHits] == 1)
    #expect(setup.port.answer(0x4000_0000, .write) == .at(0x20_5000, 8))
    #expect(guest.load(slots[0]) == 0x20_5067)
    #expect(slots[1...].allSatisfy { guest.load($0) & 0x40 == 0 })
    let walks = guest.unit.counters[.firstStageWalks]
    #expect(setup.port.answer(0x4000_0000, .write) == .at(0x20_5000, 8))
    #expect(guest.unit.counters[.firstStageWalks] == walks)
    // No EA bits unless the PASID entry enables them.
    #expect(slots.allSatisfy { guest.load($0) & 0x400 == 0 })
  }

  @Test("extended accessed bits are set if the PASID entry enables them")
  func extendedAccessed() throws {
    let setup = try start(second: 1 << 23, third: 0x80) { $0.nested = true }
    let leaf = setup.guest.slot(of: 0x7f00_1234_5000, in: setup.table, levels: 4)
    #expect(setup.port.answer(0x7f00_1234_5000) == .at(0x20_0000, 8))
    #expect(setup.guest.load(leaf) == 0x20_0467)
  }

  @Test("a walk that does not snoop must not update entries")
  func updateWithoutSnoop() throws {
    let setup = try start { $0.nested = true }
    #expect(setup.port.answer(0x7f00_1234_5000) == .at(0x20_0000, 8), "A and D are set already")
    setup.guest.map(0x4000_0000, in: setup.table, levels: 4, entry: 0x20_5007, tableBits: 0x27)
    #expect(setup.port.answer(0x4000_0000) == .refused(.translation))
    #expect(setup.guest.takeFault()?.reason == 0x90)
  }

  @Test("supervisor requests obey RID_PRIV, SRE, U/S and WPE")
  func supervisor() throws {
    let setup = try start { $0.nested = true }
    let guest = setup.guest
    let leaf = guest.slot(of: 0x7f00_1234_5000, in: setup.table, levels: 4)
    guest.store(1 << 20, at: setup.tables.context + 8)
    #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x5d)
    guest.store(guest.load(setup.tables.entry + 16) | 1, at: setup.tables.entry + 16)
    guest.store(0x20_0061, at: leaf)  // present only
    #expect(setup.port.answer(0x7f00_1234_5000) == .at(0x20_0000, 8))
    #expect(setup.port.answer(0x7f00_1234_5000, .write) == .at(0x20_0000, 8))
    // With WPE the same write needs R/W.
    guest.store(guest.load(setup.tables.entry + 16) | 0x10, at: setup.tables.entry + 16)
    guest.setRootTable(setup.tables.root, scalable: true)
    #expect(setup.port.answer(0x7f00_1234_5000, .write) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x85)
  }

  @Test("requests with PASID use their own entry, and their faults show the PASID")
  func pasid() throws {
    let setup = try start { $0.pasidBits = 20 }
    let guest = setup.guest
    let other = guest.page()
    guest.map(0x9000, in: other, levels: 4, entry: 0x21_0067, tableBits: 0x27)
    // PASID 0x41: second directory entry, second table entry.
    let table = guest.page()
    guest.store(table | 1, at: setup.tables.directory + 8)
    let words = Guest.pasidEntry(type: 1, domain: 6, firstStage: other)
    guest.store(words.0, at: table + 64)
    guest.store(words.1, at: table + 72)
    guest.store(words.2, at: table + 80)
    let port = guest.port(source, pasid: 0x41)
    #expect(port.answer(0x9000) == .refused(.translation))
    var fault = guest.takeFault()
    #expect(fault?.reason == 0x45 && fault?.pasid == 0x41)
    guest.store(guest.load(setup.tables.context) | 8, at: setup.tables.context)
    guest.forgetAll()
    #expect(port.answer(0x9010) == .at(0x21_0010, 8))
    #expect(setup.port.answer(0x9010) == .refused(.translation))
    #expect(guest.takeFault()?.pasid == nil)
    // Requests with PASID must not use the interrupt range.
    #expect(port.answer(0xfee0_0000, .write) == .refused(.translation))
    fault = guest.takeFault()
    #expect(fault?.reason == 0x87 && fault?.isRead == false)
    #expect(guest.port(source, pasid: 0x42).answer(0x9000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x59)
    #expect(guest.port(source, pasid: 0x80).answer(0x9000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x51)
    #expect(guest.port(source, pasid: 0x2000).answer(0x9000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x46)
    guest.setRootTable(setup.tables.root, scalable: false)
    #expect(port.answer(0x9000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x31)
  }

  @Test("PGSNP is ignored without snoop control, because Linux before 5.18 sets it")
  func pageSnoop() throws {
    let setup = try start(second: 1 << 24)
    #expect(setup.port.answer(0x7f00_1234_5000) == .at(0x20_0000, 8))
  }

  @Test("RID_PASID selects the entry of requests without PASID")
  func ridPASID() throws {
    let setup = try start { $0.nested = true }
    let guest = setup.guest
    guest.store(0x2000, at: setup.tables.context + 8)
    #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x48)
    // A directory of 256 entries covers PASID 0x2000.
    guest.store(guest.load(setup.tables.context) | 1 << 9, at: setup.tables.context)
    guest.forgetAll()
    #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x51)
    guest.store(0, at: setup.tables.context + 8)
    guest.forgetAll()
    #expect(setup.port.answer(0x7f00_1234_5000) == .at(0x20_0000, 8))
  }

  @Test("each entry on the path is a fault if it is absent, malformed or outside RAM")
  func entries() throws {
    let setup = try start()
    let guest = setup.guest
    let tables = setup.tables
    func expect(_ value: UInt64, at address: UInt64, _ reason: UInt8, _ what: String) {
      let good = guest.load(address)
      guest.store(value, at: address)
      guest.setRootTable(tables.root, scalable: true)
      #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation), "\(what)")
      #expect(guest.takeFault()?.reason == reason, "\(what)")
      guest.store(good, at: address)
    }
    let entry = guest.load(tables.entry)
    expect(0, at: tables.rootHalf, 0x39, "root not present")
    expect(guest.load(tables.rootHalf) | 2, at: tables.rootHalf, 0x3a, "root reserved")
    expect(0x70_0000_0001, at: tables.rootHalf, 0x40, "context not memory")
    expect(0, at: tables.context, 0x41, "context not present")
    for bit in [2, 3, 4, 5, 8, 50] {
      expect(guest.load(tables.context) | 1 << UInt64(bit), at: tables.context, 0x42, "context reserved bit \(bit)")
    }
    expect(1 << 20, at: tables.context + 8, 0x42, "RID_PRIV without SRS")
    expect(1, at: tables.context + 24, 0x42, "context upper half")
    expect(0x70_0000_0001, at: tables.context, 0x50, "directory not memory")
    expect(0, at: tables.directory, 0x51, "directory entry not present")
    expect(guest.load(tables.directory) | 4, at: tables.directory, 0x52, "directory entry reserved")
    expect(0x70_0000_0001, at: tables.directory, 0x58, "PASID table not memory")
    expect(0, at: tables.entry, 0x59, "PASID entry not present")
    expect(entry | 0x400, at: tables.entry, 0x5a, "PASID entry reserved")
    expect(entry | 0x200, at: tables.entry, 0x5a, "SSADE without SSADS")
    expect(1 << 23, at: tables.entry + 8, 0x5a, "PWSNP without SMPWC")
    expect(guest.load(tables.entry + 16) | 1, at: tables.entry + 16, 0x5a, "SRE without SRS")
    expect(1, at: tables.entry + 56, 0x5a, "PASID entry last word")
    for type: UInt64 in [0, 2, 3, 5, 6, 7] {
      expect(entry & ~0x1c0 | type << 6, at: tables.entry, 0x5b, "PGTT \(type)")
    }
    #expect(setup.port.answer(0x7f00_1234_5000) == .at(0x20_0000, 8), "no malformed entry was cached")
  }

  @Test("FPD in the context, directory or PASID entry suppresses the fault")
  func faultProcessingDisable() throws {
    let setup = try start()
    let guest = setup.guest
    for address in [setup.tables.context, setup.tables.directory, setup.tables.entry] {
      guest.store(guest.load(address) | 2, at: address)
      guest.setRootTable(setup.tables.root, scalable: true)
      #expect(setup.port.answer(0x1000) == .refused(.translation))
      #expect(setup.port.answer(0x1000) == .refused(.translation), "from the cache as well")
      #expect(guest.takeFault() == nil)
      guest.store(guest.load(address) & ~2, at: address)
    }
    // Linux leaves such an entry after it removes a device.
    guest.store(2, at: setup.tables.entry)
    guest.setRootTable(setup.tables.root, scalable: true)
    #expect(setup.port.answer(0x1000) == .refused(.translation))
    #expect(guest.takeFault() == nil)
    guest.store(0, at: setup.tables.entry)
    #expect(setup.port.answer(0x1000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x59)
  }

  @Test("reserved table modes block all requests", arguments: [2, 3] as [UInt64])
  func tableMode(mode: UInt64) throws {
    let setup = try start()
    setup.guest.write64(0x20, setup.tables.root | mode << 10)
    setup.guest.command(set: 30)
    #expect(setup.port.answer(0x7f00_1234_5000) == .refused(.translation))
    #expect(setup.guest.takeFault()?.reason == 0x30)
  }
}
