import Hardware
import Testing
import VTdOracle

@testable import VTd

@Suite("second stage and nested translation in scalable mode")
struct SecondStageTests {
  let source = RequesterID(bus: 0, device: 4, function: 0)

  func second(first: UInt64 = 0, second: UInt64 = 0, addressWidth: UInt64 = 2, nested: Bool = false) throws -> (
    guest: Guest, port: any DMAPort, table: UInt64, tables: Guest.ScalableTables
  ) {
    let guest = nested ? try Guest.nested() : try Guest.scalable()
    let table = guest.page()
    guest.map(0x7654_3000, in: table, levels: Int(addressWidth) + 2, entry: 0x20_0003, tableBits: 3)
    let tables = guest.scalableTables(
      source: source,
      words: Guest.pasidEntry(
        type: 2, secondStage: table, addressWidth: addressWidth, first: first, second: second))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableTranslation()
    return (guest, guest.port(source), table, tables)
  }

  @Test("a page is translated with 3 and 4 levels", arguments: [1, 2] as [UInt64])
  func page(addressWidth: UInt64) throws {
    let (guest, port, _, _) = try second(addressWidth: addressWidth)
    #expect(port.answer(0x7654_3010, .write) == .at(0x20_0010, 8))
    #expect(guest.unit.counters[.secondStageWalks] == 1)
    #expect(port.answer(1 << UInt64(30 + 9 * addressWidth)) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x83)
  }

  @Test("faults have the codes of scalable mode")
  func faults() throws {
    let (guest, port, table, tables) = try second()
    func expect(_ entry: UInt64, _ access: DMAAccess, _ reason: UInt8) {
      guest.store(entry, at: guest.slot(of: 0x7654_3000, in: table, levels: 4))
      #expect(port.answer(0x7654_3000, access) == .refused(.translation))
      #expect(guest.takeFault()?.reason == reason)
    }
    expect(0, .read, 0x79)
    expect(0x20_0001, .write, 0x85)
    expect(0x20_0002, .read, 0x86)
    expect(0x20_0003 | 1 << 50, .read, 0x7a)
    expect(0xfee0_0003, .read, 0x87)
    guest.map(1 << 39, in: table, levels: 4, entry: 0x70_0000_0003, atLevel: 4, tableBits: 3)
    #expect(port.answer(1 << 39) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x78)
    guest.store(0x70_0000_0000 | guest.load(tables.entry) & 0xfff, at: tables.entry)
    guest.setRootTable(tables.root, scalable: true)
    #expect(port.answer(0x7654_3000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x7b)
    guest.store(guest.load(tables.entry) & ~0x1c, at: tables.entry)
    guest.setRootTable(tables.root, scalable: true)
    #expect(port.answer(0x7654_3000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x5b)
  }

  @Test("snoop bits are allowed in leaves, but not in table entries")
  func snoop() throws {
    let (guest, port, table, _) = try second()
    guest.store(0x20_0803, at: guest.slot(of: 0x7654_3000, in: table, levels: 4))
    #expect(port.answer(0x7654_3000) == .at(0x20_0000, 8))
    let above = guest.slot(of: 0x7654_3000, in: table, levels: 4, level: 2)
    guest.store(guest.load(above) | 0x800, at: above)
    guest.forgetAll()
    #expect(port.answer(0x7654_3000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x7a)
  }

  @Test("accessed and dirty bits are set if the PASID entry enables them")
  func accessedDirty() throws {
    let (guest, port, table, tables) = try second(first: 0x200, second: 1 << 23, nested: true)
    let slots = (1...4).map { guest.slot(of: 0x7654_3000, in: table, levels: 4, level: $0) }
    #expect(port.answer(0x7654_3000) == .at(0x20_0000, 8))
    #expect(slots.allSatisfy { guest.load($0) & 0x300 == 0x100 })
    #expect(port.answer(0x7654_3000, .write) == .at(0x20_0000, 8))
    #expect(guest.load(slots[0]) == 0x20_0303)
    // Without snooping, an update is a fault.
    guest.store(5, at: tables.entry + 8)
    guest.store(0x20_0003, at: slots[0])
    guest.setRootTable(tables.root, scalable: true)
    #expect(port.answer(0x7654_3000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x7c)
  }

  @Test("pass-through returns the address itself, up to the guest address width")
  func passThrough() throws {
    let (guest, port, _, tables) = try second()
    guest.store(guest.load(tables.entry) & ~0x1c0 | 4 << 6, at: tables.entry)
    #expect(port.answer(0x1234) == .at(0x1234, 8))
    #expect(port.answer(1 << 48) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x83)
  }

  // MARK: Nested

  @Test("a write that the second stage refuses does not set the first stage's dirty bit", arguments: [false, true])
  func refusedWriteMarksNothing(byTranslationRequest: Bool) throws {
    let guest = try Guest.nested {
      $0.deviceIOTLB = true
      $0.pasidBits = 20
    }
    let first = guest.page()
    let second = guest.page()
    let input: UInt64 = 0x1_2345_6000
    guest.map(input, in: first, levels: 4, entry: 0x50_0007, tableBits: 0x7)
    // The page that the leaf maps is read-only in the second stage; the tables are not.
    for page: UInt64 in 0..<0x400 { guest.map(page << 12, in: second, levels: 4, entry: page << 12 | 3, tableBits: 3) }
    guest.map(0x50_0000, in: second, levels: 4, entry: 0x50_0001, tableBits: 3)
    let slot = guest.slot(of: input, in: first, levels: 4)
    let dataSlot = guest.slot(of: 0x50_0000, in: second, levels: 4)
    let words = Guest.pasidEntry(
      type: 3, firstStage: first, secondStage: second, first: 1 << 9, second: 1 << 23)
    _ = guest.startScalable(source, words)
    if byTranslationRequest {
      let answer = guest.requestPort(source).translate(input, noWrite: false, prefix: nil)
      guard case .success(let page) = answer else { return #expect(Bool(false), "\(answer)") }
      #expect(page.isReadable && !page.isWritable)
    } else {
      #expect(guest.port(source).answer(input, .write) == .refused(.translation))
      #expect(guest.takeFault()?.reason == 0x85)
    }
    #expect(!guest.load(slot)[bit: 6], "D of the first-stage leaf")
    #expect(!guest.load(dataSlot)[bit: 9], "D of the second-stage leaf")

    // Once the second stage permits the write, both leaves are dirty.
    guest.store(0x50_0003, at: dataSlot)
    guest.forgetAll()
    #expect(guest.port(source).answer(input, .write) == .at(0x50_0000, 8))
    #expect(guest.load(slot)[bit: 6] && guest.load(dataSlot)[bit: 9])
  }

  @Test("a leaf in a table that the second stage write-protects is not updated, and no second-stage dirty bit is set")
  func protectedTable() throws {
    let guest = try Guest.nested()
    let first = guest.page()
    let second = guest.page()
    let input: UInt64 = 0x1_2345_6000
    guest.map(input, in: first, levels: 4, entry: 0x50_0007, tableBits: 0x27)
    for page: UInt64 in 0..<0x600 { guest.map(page << 12, in: second, levels: 4, entry: page << 12 | 3, tableBits: 3) }
    let slot = guest.slot(of: input, in: first, levels: 4)
    let tableSlot = guest.slot(of: slot & ~0xfff, in: second, levels: 4)
    guest.store(guest.load(tableSlot) & ~2, at: tableSlot)
    let words = Guest.pasidEntry(
      type: 3, firstStage: first, secondStage: second, first: 1 << 9, second: 1 << 23)
    _ = guest.startScalable(source, words, contextBits: 0)
    #expect(guest.port(source).answer(input, .write) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x77)
    #expect(!guest.load(guest.slot(of: 0x50_0000, in: second, levels: 4))[bit: 9])
  }

  struct Nested {
    let guest: Guest
    let port: any DMAPort
    /// A guest physical address: the host physical address plus `offset`.
    let first: UInt64
    let second: UInt64
  }

  static let offset: UInt64 = 0x4_0000_0000

  /// Sets up a first stage whose tables the second stage maps at `offset`, page by page. IOVA 0x1_2345_6000 is mapped
  /// to guest physical 0x5000 + offset.
  func nested(addressWidth: UInt64 = 2) throws -> Nested {
    let levels = Int(addressWidth) + 2
    let guest = try Guest.nested()
    let table = guest.page()
    // Table pointers are guest physical addresses.
    let pages = (0..<3).map { _ in guest.page() }
    let input: UInt64 = 0x1_2345_6000
    var above = table
    for (index, page) in pages.enumerated() {
      let level = 4 - index
      guest.store(
        (page + Self.offset) | 0x7, at: above + ((input >> UInt64(12 + 9 * (level - 1))) & 0x1ff) * 8)
      above = page
    }
    guest.store((0x5000 + Self.offset) | 0x67, at: above + ((input >> 12) & 0x1ff) * 8)
    let root = guest.page()
    for page in [table] + pages {
      guest.map(page + Self.offset, in: root, levels: levels, entry: page | 3, tableBits: 3)
    }
    guest.map(0x5000 + Self.offset, in: root, levels: levels, entry: 0x20_0003, tableBits: 3)
    let tables = guest.scalableTables(
      source: source,
      words: Guest.pasidEntry(
        type: 3, firstStage: table + Self.offset, secondStage: root, addressWidth: addressWidth, second: 1 << 23))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableTranslation()
    return Nested(guest: guest, port: guest.port(source), first: table, second: root)
  }

  @Test("the second stage translates every address of the first stage")
  func nestedPage() throws {
    let setup = try nested()
    #expect(setup.port.answer(0x1_2345_6010, .write) == .at(0x20_0010, 8))
    #expect(setup.port.answer(0x1_2345_6010) == .at(0x20_0010, 8))
    #expect(setup.guest.unit.counters[.nestedWalks] == 1)
    #expect(setup.guest.unit.counters[.iotlbHits] == 1)
    // The accessed bits are in the tables themselves.
    #expect(setup.guest.load(setup.first) & 0x20 != 0)
  }

  @Test("a nested page has the smaller of the two sizes")
  func nestedSizes() throws {
    let setup = try nested()
    let guest = setup.guest
    guest.map(0x4000_0000 + Self.offset, in: setup.second, levels: 4, entry: 0x40_0083, atLevel: 2, tableBits: 3)
    // A 1 GiB page of the first stage.
    guest.store((0x4000_0000 + Self.offset) | 0xe7, at: (guest.load(setup.first) & 0xf_ffff_f000) - Self.offset)
    #expect(setup.port.answer(0x1234, count: 1 << 30) == .at(0x40_1234, 0x20_0000 - 0x1234))
    #expect(setup.port.answer(0x20_0000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x79)
  }

  @Test("a second-stage refusal of each first-stage access has its own fault")
  func nestedFaults() throws {
    func expect(
      _ reason: UInt8, _ access: DMAAccess = .read, addressWidth: UInt64 = 2, _ change: (Nested, Guest) -> Void
    ) throws {
      let setup = try nested(addressWidth: addressWidth)
      change(setup, setup.guest)
      #expect(setup.port.answer(0x1_2345_6000, access) == .refused(.translation))
      #expect(setup.guest.takeFault()?.reason == reason)
    }
    func slot(_ setup: Nested, _ address: UInt64) -> UInt64 {
      setup.guest.slot(of: address + Self.offset, in: setup.second, levels: 4)
    }
    let place = { (setup: Nested) in (setup.guest.load(setup.first) & 0xf_ffff_f000) - Self.offset }
    try expect(0x75) { $1.store(0, at: slot($0, $0.first)) }
    try expect(0x76) { $1.store(0, at: slot($0, place($0))) }
    // A read-only second stage keeps the accessed bit from being set.
    try expect(0x77) { $1.store($0.first | 1, at: slot($0, $0.first)) }
    try expect(0x7a) { $1.store($0.first | 3 | 1 << 50, at: slot($0, $0.first)) }
    try expect(0x79) { $1.store(0, at: slot($0, 0x5000)) }
    try expect(0x85, .write) { $1.store(0x20_0001, at: slot($0, 0x5000)) }
    try expect(0x87) { $1.store(0xfee0_0003, at: slot($0, 0x5000)) }
    // A table address beyond the second stage's 39 bits, and the output address of a 1 GiB page beyond them.
    try expect(0x74, addressWidth: 1) { $1.store(1 << 40 | 0x27, at: $0.first) }
    try expect(0x84, addressWidth: 1) { $1.store(1 << 40 | 0xe7, at: place($0) + 4 * 8) }
  }

  @Test("a first-stage root beyond the second stage's width is a nested fault")
  func nestedPointerBeyond() throws {
    let setup = try nested()
    // FSPTPTR is beyond 48 bits.
    setup.guest.unit.reset()
    let tables = setup.guest.scalableTables(
      source: source,
      words: Guest.pasidEntry(type: 3, firstStage: 1 << 48, secondStage: setup.second, second: 1 << 23))
    setup.guest.setRootTable(tables.root, scalable: true)
    setup.guest.enableTranslation()
    #expect(setup.port.answer(0x1_2345_6000) == .refused(.translation))
    #expect(setup.guest.takeFault()?.reason == 0x74)
  }
}
