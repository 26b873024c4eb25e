import Hardware
import Testing
import VTdOracle

@testable import VTd

@Suite("legacy mode")
struct LegacyTests {
  let source = RequesterID(bus: 2, device: 31, function: 5)

  /// Sets up legacy mode with one 4 KiB page, read-write, at 0x7654_3000.
  func start(
    type: UInt64 = 0, addressWidth: UInt64 = 2, faultDisable: Bool = false,
    options: (inout UnitOptions) -> Void = { _ in }
  ) throws -> (guest: Guest, port: any DMAPort, table: UInt64, root: UInt64, context: UInt64) {
    let guest = try Guest(options)
    let table = guest.page()
    guest.map(
      0x7654_3000, in: table, levels: Int(addressWidth) + 2, entry: 0x20_0003, tableBits: Guest.secondStageBits)
    let (root, context) = guest.legacyTables(
      source: source, secondStage: table, type: type, addressWidth: addressWidth, faultDisable: faultDisable)
    guest.setRootTable(root, scalable: false)
    guest.enableTranslation()
    return (guest, guest.port(source), table, root, context)
  }

  @Test("while translation is disabled, requests pass unchanged if the function has bus mastering enabled")
  func disabled() throws {
    let guest = try Guest()
    let requester = Requester(id: source)
    let port = guest.unit.makePort(for: requester)
    #expect(port.answer(0x1234, count: 100_000) == .refused(.disabled))
    requester.busMasterEnable = true
    #expect(port.answer(0x1234, count: 100_000) == .at(0x1234, 100_000))
    #expect(guest.unit.counters[.untranslatedRequests] == 1)
  }

  @Test("the second stage translates with 3 to 5 levels", arguments: [1, 2, 3] as [UInt64])
  func levels(addressWidth: UInt64) throws {
    let (guest, port, _, _, _) = try start(addressWidth: addressWidth) { $0.addressWidth = 57 }
    #expect(port.answer(0x7654_3210) == .at(0x20_0210, 8))
    #expect(port.answer(0x7654_3ffc, count: 8, .write) == .at(0x20_0ffc, 4))
    #expect(guest.takeFault() == nil)
    #expect(guest.unit.counters[.secondStageWalks] == 1)
    #expect(guest.unit.counters[.iotlbHits] == 1)
    #expect(guest.unit.counters[.contextWalks] == 1)
  }

  @Test(
    "an address width that SAGAW does not offer makes the context entry invalid", arguments: [0, 3, 4, 7] as [UInt64])
  func badAddressWidth(field: UInt64) throws {
    let (guest, port, _, _, context) = try start()
    guest.store(7 << 8 | field, at: context + 8)
    #expect(port.answer(0x7654_3000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x03)
  }

  @Test("large pages are translated, and their addresses must be aligned")
  func largePages() throws {
    let (guest, port, table, _, _) = try start()
    guest.map(0x4020_0000, in: table, levels: 4, entry: 0x60_0083, atLevel: 2, tableBits: 3)
    guest.map(0x1_8000_0000, in: table, levels: 4, entry: 0x4000_0083, atLevel: 3, tableBits: 3)
    #expect(port.answer(0x4023_4567, count: 1 << 30) == .at(0x63_4567, 0x20_0000 - 0x3_4567))
    #expect(port.answer(0x1_8765_4321, count: .max) == .at(0x4765_4321, 0x4000_0000 - 0x765_4321))
    // Low address bits of a large leaf are reserved.
    guest.map(0x4040_0000, in: table, levels: 4, entry: 0x60_1083, atLevel: 2, tableBits: 3)
    #expect(port.answer(0x4040_0000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x0c)
  }

  @Test("an access needs permission at every level")
  func rights() throws {
    let (guest, port, table, _, _) = try start()
    guest.map(0x7654_4000, in: table, levels: 4, entry: 0x20_1001, tableBits: 3)
    guest.map(0x7654_5000, in: table, levels: 4, entry: 0x20_2002, tableBits: 3)
    guest.map(0x9000_0000, in: table, levels: 4, entry: 0x20_3003, tableBits: 1)
    #expect(port.answer(0x7654_4000) == .at(0x20_1000, 8))
    #expect(port.answer(0x7654_4000, .write) == .refused(.translation))
    var fault = guest.takeFault()
    #expect(fault?.reason == 0x05 && fault?.isRead == false && fault?.address == 0x7654_4000)
    #expect(port.answer(0x7654_5000, .write) == .at(0x20_2000, 8))
    #expect(port.answer(0x7654_5000) == .refused(.translation))
    fault = guest.takeFault()
    #expect(fault?.reason == 0x06 && fault?.isRead == true && fault?.source == source.rawValue && fault?.pasid == nil)
    #expect(port.answer(0x9000_0000, .write) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x05)
    #expect(port.answer(0x7654_5000, [.read, .write]) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x06)
  }

  @Test("a missing leaf, a table outside RAM, and addresses beyond the width or in the interrupt range are faults")
  func missing() throws {
    let (guest, port, table, _, _) = try start()
    #expect(port.answer(0x7654_6000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x06)
    #expect(port.answer(0x7654_6000, .write) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x05)
    guest.map(0x1_0000_0000, in: table, levels: 4, entry: 0x40_0000_0003, atLevel: 3, tableBits: 3)
    #expect(port.answer(0x1_0000_0000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x07)
    #expect(port.answer(1 << 48) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x04)
    #expect(port.answer(.max) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x04)
    guest.map(0x7654_7000, in: table, levels: 4, entry: 0xfee0_0003, tableBits: 3)
    #expect(port.answer(0x7654_7000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x0e)
  }

  @Test("reserved bits of paging entries are faults, and ignored bits are not")
  func reservedBits() throws {
    let (guest, port, table, _, _) = try start()
    let leaf = guest.slot(of: 0x7654_3000, in: table, levels: 4)
    for bit in [11, 48, 51, 62] {
      guest.store(0x20_0003 | 1 << UInt64(bit), at: leaf)
      #expect(port.answer(0x7654_3000) == .refused(.translation), "bit \(bit)")
      #expect(guest.takeFault()?.reason == 0x0c)
    }
    for bit in [2, 3, 6, 8, 9, 10, 52, 61, 63] {
      guest.store(0x20_0003 | 1 << UInt64(bit), at: leaf)
      #expect(port.answer(0x7654_3000) == .at(0x20_0000, 8), "bit \(bit)")
      guest.write64(0xf8, 1 << 63 | 1 << 60)
    }
    let top = guest.slot(of: 0x7654_3000, in: table, levels: 4, level: 4)
    guest.store(guest.load(top) | 0x80, at: top)
    #expect(port.answer(0x7654_3000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x0c)
  }

  @Test("root and context entries that are absent, malformed or outside RAM are faults")
  func entries() throws {
    let (guest, port, _, root, context) = try start()
    let rootEntry = root + 2 * 16
    let goodRoot = guest.load(rootEntry)
    let good = (guest.load(context), guest.load(context + 8))
    func expect(_ reason: UInt8, _ what: String) {
      guest.write64(0x28, 1 << 63 | 1 << 61)
      #expect(port.answer(0x7654_3000) == .refused(.translation), "\(what)")
      #expect(guest.takeFault()?.reason == reason, "\(what)")
    }
    guest.store(goodRoot & ~1, at: rootEntry)
    expect(0x01, "root not present")
    guest.store(goodRoot | 0x10, at: rootEntry)
    expect(0x0a, "root reserved")
    guest.store(goodRoot, at: rootEntry)
    guest.store(1, at: rootEntry + 8)
    expect(0x0a, "root upper half")
    guest.store(0, at: rootEntry + 8)
    guest.store(0x40_0000_0001, at: rootEntry)
    expect(0x09, "context table not memory")
    guest.store(goodRoot, at: rootEntry)
    guest.store(good.0 & ~1, at: context)
    expect(0x02, "context not present")
    guest.store(good.0 | 0x20, at: context)
    expect(0x0b, "context reserved low")
    guest.store(good.0, at: context)
    guest.store(good.1 | 1 << 24, at: context + 8)
    expect(0x0b, "context reserved high")
    guest.store(good.1 | 1 << 3, at: context + 8)
    guest.store(good.0 | 3 << 2, at: context)
    expect(0x03, "reserved translation type")
    guest.store(good.0 | 1 << 2, at: context)
    expect(0x03, "device-TLB type without device-iotlb")
    guest.setRootTable(0x40_0000_0000, scalable: false)
    expect(0x08, "root table not memory")
  }

  @Test("pass-through works only with its capability")
  func passThrough() throws {
    let (guest, port, _, _, _) = try start(type: 2)
    #expect(port.answer(0x12345, count: 1 << 20) == .at(0x12345, 1 << 20))
    // A segment ends before the interrupt range.
    #expect(port.answer(0xfedf_fff0, count: 0x100) == .at(0xfedf_fff0, 0x10))
    #expect(port.answer(1 << 48) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x04)
    #expect(guest.unit.counters[.passThroughRequests] == 3)

    let (other, refused, _, _, _) = try start(type: 2) { $0.passThrough = false }
    #expect(refused.answer(0x12345) == .refused(.translation))
    #expect(other.takeFault()?.reason == 0x03)
  }

  @Test("with the device-TLB type, untranslated requests use the second stage")
  func deviceTLBType() throws {
    let (_, port, _, _, _) = try start(type: 1) { $0.deviceIOTLB = true }
    #expect(port.answer(0x7654_3000) == .at(0x20_0000, 8))
  }

  @Test("Fault Processing Disable suppresses qualified faults only")
  func faultProcessingDisable() throws {
    let (guest, port, _, root, context) = try start(faultDisable: true)
    #expect(port.answer(0x1000) == .refused(.translation))
    #expect(guest.takeFault() == nil)
    #expect(guest.unit.counters[.faults] == 1)
    guest.store(guest.load(context) & ~1, at: context)
    guest.write64(0x28, 1 << 63 | 1 << 61)
    #expect(port.answer(0x1000) == .refused(.translation))
    #expect(guest.takeFault() == nil, "the entry is not present, but has FPD")
    guest.store(0, at: root + 2 * 16)
    #expect(port.answer(0x1000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x01)
  }

  @Test("TM (bit 62 of a leaf) is reserved except with stale-tm")
  func ignoresTransientMapping() throws {
    let (_, port, table, _, _) = try start(type: 1) {
      $0.deviceIOTLB = true
      $0.ignoresTransientMapping = true
    }
    _ = table
    #expect(port.answer(0x7654_3000) == .at(0x20_0000, 8))
    let (guest, strict, strictTable, _, _) = try start(type: 1) { $0.deviceIOTLB = true }
    guest.store(0x20_0003 | 1 << 62, at: guest.slot(of: 0x7654_3000, in: strictTable, levels: 4))
    #expect(strict.answer(0x7654_3000) == .refused(.translation))
    let (loose, looser, looseTable, _, _) = try start(type: 1) {
      $0.deviceIOTLB = true
      $0.ignoresTransientMapping = true
    }
    loose.store(0x20_0003 | 1 << 62, at: loose.slot(of: 0x7654_3000, in: looseTable, levels: 4))
    #expect(looser.answer(0x7654_3000) == .at(0x20_0000, 8))
  }

  @Test("writes to the interrupt range are interrupt requests, without translation")
  func interruptRange() throws {
    let (guest, port, table, _, _) = try start()
    // A 2 MiB mapping of the range does not make it memory.
    guest.map(0xfee0_0000, in: table, levels: 4, entry: 0x60_0083, atLevel: 2, tableBits: 3)
    try port.storeUInt32(0x4041, at: 0xfee0_100c)
    #expect(
      guest.sink.deliveries == [
        RecordingSink.Delivery(source: source, message: InterruptMessage(address: 0xfee0_100c, data: 0x4041))
      ])
    // A byte write of four aligned bytes does the same; other sizes do not.
    let bytes: [UInt8] = [0x42, 0x40, 0, 0, 0, 0, 0, 0]
    try port.write(bytes.span.bytes.extracting(0..<4), to: 0xfee0_200c)
    #expect(
      guest.sink.deliveries.last
        == RecordingSink.Delivery(source: source, message: InterruptMessage(address: 0xfee0_200c, data: 0x4042)))
    for (count, address): (Int, UInt64) in [(8, 0xfee0_1000), (2, 0xfee0_1000), (4, 0xfee0_1002), (3, 0xfee0_1000)] {
      #expect(throws: DMAError.notMemory) { try port.write(bytes.span.bytes.extracting(0..<count), to: address) }
    }
    #expect(guest.sink.deliveries.count == 2)
    #expect(throws: DMAError.notMemory) { try port.loadUInt32(at: 0xfee0_1000) }
    #expect(throws: DMAError.notMemory) { try port.storeUInt64(1, at: 0xfee0_1000) }
    // Above the range the mapping applies. A segment within the range has at most one page.
    #expect(port.answer(0xfef0_0000) == .at(0x70_0000, 8))
    #expect(port.answer(0xfee0_1000, count: 0x2000) == .at(0xfee0_1000, 0x1000))
    #expect(guest.takeFault() == nil)
  }

  @Test("after its bus number changes, a function is translated by the tables of its new number at once")
  func renumbered() throws {
    let (guest, _, _, _, _) = try start()
    let requester = Requester(id: source, busMasterEnable: true)
    let port = guest.unit.makePort(for: requester)
    #expect(port.answer(0x7654_3000) == .at(0x20_0000, 8))
    requester.id = RequesterID(bus: 3, device: 0, function: 0)
    #expect(port.answer(0x7654_3000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x01)
  }
}
