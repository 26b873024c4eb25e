import Devices
import Hardware
import PCI
import Testing
import VTd

@testable import Machine

/// Drives a VT-d unit and `edu` on a whole board without a CPU, as a driver does: finds the device by configuration
/// accesses and programs both by MMIO, with every table in RAM.
@Suite(.timeLimit(.minutes(5))) struct QTestTranslationTests {
  private static let unit: UInt64 = 0xfed9_0000
  private static let bar: UInt64 = 0xe000_0000
  private static let function: UInt8 = 3 << 3

  // The layout of RAM.
  private static let root: UInt64 = 0x10_0000
  private static let context: UInt64 = 0x10_1000
  private static let directory: UInt64 = 0x10_2000
  private static let pasidTable: UInt64 = 0x10_3000
  private static let firstStage: UInt64 = 0x10_4000
  private static let queue: UInt64 = 0x11_0000
  private static let status: UInt64 = 0x12_0000
  private static let faultMessage: UInt64 = 0x12_1000
  private static let doneMessage: UInt64 = 0x12_1004
  private static let page: UInt64 = 0x20_0000
  private static let otherPage: UInt64 = 0x20_1000
  /// Its table indices are 1, 2, 3 and 4, from the top level down.
  private static let address: UInt64 = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12

  private let client: QTestBoard

  init() throws {
    var options = IntelIOMMUOptions()
    options.unit.scalableMode = true
    options.unit.firstStage = true
    client = try QTestBoard(unit: options)
    let edu = Edu(
      mask: .max, environment: client.board.environment(at: RequesterID(bus: 0, device: 3, function: 0)),
      address: RequesterID(bus: 0, device: 3, function: 0))
    try client.board.plug(edu.function, of: nil)
  }

  // MARK: The driver

  /// Looks for the device, places its BAR and enables it.
  private func findDevice() throws {
    var found: [UInt8: UInt32] = [:]
    for device in 0..<32 as Range<UInt8> {
      let identifier = try client.readConfiguration(device << 3, 0)
      if identifier != 0xffff_ffff { found[device] = identifier }
    }
    #expect(found == [0: 0x29c0_8086, 3: 0x11e8_1234, 31: 0x2918_8086])
    // The state after a reset: no firmware has run.
    #expect(try client.readConfiguration(Self.function, 4) & 7 == 0)
    #expect(try client.readConfiguration(Self.function, 0x10) == 0)
    client.writeConfiguration(Self.function, 0x10, 0xffff_ffff)
    #expect(try client.readConfiguration(Self.function, 0x10) == 0xfff0_0000)
    client.writeConfiguration(Self.function, 0x10, UInt32(Self.bar))
    client.writeConfiguration(Self.function, 4, 0x6)
    #expect(try client.load32(Self.bar) == 0x0100_00ed)
  }

  private func entry(_ index: UInt64, of level: UInt64) -> UInt64 { Self.firstStage + level * 0x1000 + index * 8 }

  /// Enables scalable mode. A first stage translates the device's requests without PASID and maps one page at
  /// `address`.
  private func translate() throws {
    client.store(Self.context | 1, at: Self.root)
    let context = Self.context + UInt64(Self.function) * 32
    client.store(Self.directory | 1, at: context)
    client.store(0, at: context + 8)
    client.store(Self.pasidTable | 1, at: Self.directory)
    // Present, 4 levels (AW), first stage only (PGTT); domain 5; the first-stage table, also of 4 levels.
    client.store(1 | 2 << 2 | 1 << 6, at: Self.pasidTable)
    client.store(5, at: Self.pasidTable + 8)
    client.store(Self.firstStage, at: Self.pasidTable + 16)
    for level in 0..<3 as Range<UInt64> {
      client.store(Self.firstStage + (level + 1) * 0x1000 | 7, at: entry(level + 1, of: level))
    }
    client.store(Self.page | 7, at: entry(4, of: 3))

    client.store(Self.queue | 1 << 11, at: Self.unit + 0x90)
    command(1 << 26, expecting: 1 << 26)
    client.store(Self.root | 1 << 10, at: Self.unit + 0x20)
    command(1 << 26 | 1 << 30, expecting: 1 << 26 | 1 << 30)
    command(1 << 26 | 1 << 31, expecting: 1 << 26 | 1 << 30 | 1 << 31)
  }

  /// Writes GCMD and expects a value of GSTS.
  private func command(_ value: UInt32, expecting status: UInt32) {
    client.store32(value, at: Self.unit + 0x18)
    #expect((try? client.load32(Self.unit + 0x1c)) == status)
  }

  /// Submits a descriptor of 256 bits and a wait descriptor, and waits for the status of the wait descriptor.
  private func submit(_ low: UInt64, _ high: UInt64) throws {
    let tail = try client.load(Self.unit + 0x88)
    var at = tail
    for (low, high) in [(low, high), (0x55 << 32 | 1 << 5 | 5, Self.status)] {
      for (offset, word) in [low, high, 0, 0].enumerated() {
        client.store(word, at: Self.queue + at + UInt64(offset) * 8)
      }
      at = (at + 32) % 0x1000
    }
    client.store32(0, at: Self.status)
    client.store(at, at: Self.unit + 0x88)
    try client.wait("the wait descriptor's status") { try client.load32(Self.status) == 0x55 }
    #expect(try client.load32(Self.unit + 0x34) == 0)
  }

  /// Makes the device move bytes between its buffer and memory.
  private func transfer(_ address: UInt64, count: UInt64, toMemory: Bool, interrupts: Bool = false) throws {
    client.store(toMemory ? 0x40000 : address, at: Self.bar + 0x80)
    client.store(toMemory ? address : 0x40000, at: Self.bar + 0x88)
    client.store(count, at: Self.bar + 0x90)
    client.store(1 | (toMemory ? 2 : 0) | (interrupts ? 4 : 0), at: Self.bar + 0x98)
    try client.wait("the end of the transfer") { try client.load(Self.bar + 0x98) & 1 == 0 }
  }

  // MARK: Tests

  @Test("DMA is translated by the first stage, which sets accessed and dirty bits")
  func firstStage() throws {
    try findDevice()
    try translate()
    client.order("write \(Self.page + 0x10) 8 0x0102030405060708")
    try transfer(Self.address + 0x10, count: 8, toMemory: false)
    try transfer(Self.address + 0x800, count: 8, toMemory: true)
    #expect(client.send("read \(Self.page + 0x800) 8") == "OK 0x0102030405060708")
    // Accessed on every level, dirty on the last.
    for level in 0..<4 as Range<UInt64> {
      #expect(try client.load(entry(level + 1, of: level)) & 0x60 == (level == 3 ? 0x60 : 0x20))
    }
    #expect(try client.load32(Self.unit + 0x34) == 0)
  }

  /// The unit records a fault and sends its message to RAM, where a client without a CPU can see it.
  @Test("an access to an unmapped or read-only page records a fault and moves no data")
  func fault() throws {
    try findDevice()
    try translate()
    client.store32(0xfa, at: Self.unit + 0x3c)
    client.store32(UInt32(Self.faultMessage), at: Self.unit + 0x40)
    client.store32(0, at: Self.unit + 0x38)
    client.order("memset \(Self.page) 0x2000 0xcc")
    try transfer(Self.address + 0x1000, count: 4, toMemory: true)
    #expect(try client.load32(Self.faultMessage) == 0xfa)
    #expect(try client.load32(Self.unit + 0x34) & 2 == 2)
    let record = Self.unit + (try client.load(Self.unit + 0x8) >> 24 & 0x3ff) * 16
    #expect(try client.load(record) == Self.address + 0x1000)
    let high = try client.load(record + 8)
    #expect(high >> 63 == 1)
    #expect(high & 0xffff == UInt64(Self.function))
    // SFS.2 (VT-d 7.1.3): a first-stage entry is not present. The request is a write.
    #expect(high >> 32 & 0xff == 0x71)
    #expect(high >> 62 & 1 == 0)
    client.store(1 << 63, at: record + 8)
    #expect(try client.load32(Self.unit + 0x34) & 2 == 0)
    // A page without write permission.
    client.store(Self.page | 5, at: entry(4, of: 3))
    try transfer(Self.address, count: 4, toMemory: true)
    #expect(try client.load32(Self.unit + 0x34) & 2 == 2)
    #expect(client.send("read \(Self.page) 4") == "OK 0xcccccccc")
  }

  @Test("a changed entry takes effect with its invalidation")
  func invalidation() throws {
    try findDevice()
    try translate()
    client.order("write \(Self.page) 4 0x11111111")
    client.order("write \(Self.otherPage) 4 0x22222222")
    func seen() throws -> UInt32 {
      try transfer(Self.address, count: 4, toMemory: false)
      // The bytes return through the mapping of another page.
      client.store(0x30_0000 | 7, at: entry(5, of: 3))
      try transfer(Self.address + 0x1000, count: 4, toMemory: true)
      return try client.load32(0x30_0000)
    }
    #expect(try seen() == 0x1111_1111)
    client.store(Self.otherPage | 7, at: entry(4, of: 3))
    // Page-selective within PASID 0 of domain 5, this page.
    try submit(6 | 3 << 4 | 5 << 16, Self.address)
    #expect(try seen() == 0x2222_2222)
    client.store(Self.page | 7, at: entry(4, of: 3))
    // All of PASID 0.
    try submit(6 | 2 << 4 | 5 << 16, 0)
    #expect(try seen() == 0x1111_1111)
    // The entry is removed, and its cached translation is invalidated.
    client.store(0, at: entry(4, of: 3))
    try submit(6 | 2 << 4 | 5 << 16, 0)
    try transfer(Self.address, count: 4, toMemory: false)
    #expect(try client.load32(Self.unit + 0x34) & 2 == 2)
  }

  /// INTA# of device 3 is GSI 19.
  @Test("the device's interrupt pin is reported by its GSI")
  func interruptByPin() throws {
    try findDevice()
    client.order("irq_intercept_in ioapic")
    #expect(client.send("writel \(Self.bar + 0x60) 1") == "IRQ raise 19\nOK")
    #expect(try client.load32(Self.bar + 0x24) == 1)
    #expect(client.send("writel \(Self.bar + 0x64) 1") == "IRQ lower 19\nOK")
  }

  /// An MSI is a DMA write. If its address is in RAM, it is translated like the device's other requests.
  @Test("an MSI to RAM is translated, and an MSI to an interrupt address is an interrupt")
  func messageToMemory() throws {
    try findDevice()
    let capability = Int(try client.readConfiguration(Self.function, 0x34) & 0xff)
    #expect(try client.readConfiguration(Self.function, capability) & 0xff == 5)
    client.writeConfiguration(Self.function, capability + 8, 0)
    client.writeConfiguration(Self.function, capability + 12, 0x77)
    client.writeConfiguration(Self.function, capability + 4, UInt32(Self.doneMessage))
    client.writeConfiguration(Self.function, capability, 1 << 16)
    try transfer(Self.page, count: 4, toMemory: true, interrupts: true)
    try client.wait("the message") { try client.load32(Self.doneMessage) == 0x77 }

    try translate()
    client.writeConfiguration(Self.function, capability + 8, UInt32(Self.address >> 32))
    client.writeConfiguration(Self.function, capability + 4, UInt32(truncatingIfNeeded: Self.address) + 0x40)
    client.store32(0x100, at: Self.bar + 0x64)
    try transfer(Self.address, count: 4, toMemory: true, interrupts: true)
    try client.wait("the translated message") { try client.load32(Self.page + 0x40) == 0x77 }
    #expect(client.interrupts.sent.isEmpty)
    // An interrupt address is no memory.
    client.writeConfiguration(Self.function, capability + 8, 0)
    client.writeConfiguration(Self.function, capability + 4, 0xfee0_0000)
    client.store32(0x100, at: Self.bar + 0x64)
    try transfer(Self.address, count: 4, toMemory: true, interrupts: true)
    try client.wait("the interrupt") {
      client.interrupts.sent == [InterruptMessage(address: 0xfee0_0000, data: 0x77)]
    }
  }
}
