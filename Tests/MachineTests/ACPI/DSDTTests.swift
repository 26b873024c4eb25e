import Devices
import Hardware
import Testing

@testable import Machine

/// Checks the compiled DSDT against the board's addresses. Searches for the bytes that encode them in ACPI machine
/// language (ACPI 6.5, sections 6.4 and 20.2).
@Suite struct DSDTTests {
  private func table() throws -> [UInt8] {
    try #require(ACPITables.build(ACPIConfiguration(localAPICs: [0])).table("DSDT"))
  }

  private func contains(_ needle: [UInt8]) throws -> Bool {
    let table = try table()
    return table.indices.contains { table[$0...].starts(with: needle) }
  }

  private func name(_ name: String, _ value: [UInt8]) -> [UInt8] { [0x08] + Array(name.utf8) + value }

  /// Returns an I/O port descriptor that decodes 16 address bits.
  private func ports(_ first: UInt16, count: UInt8) -> [UInt8] {
    let low = UInt8(truncatingIfNeeded: first)
    let high = UInt8(truncatingIfNeeded: first >> 8)
    return [0x47, 0x01, low, high, low, high, 0x01, count]
  }

  @Test func `the host bridge, the reserved resources, COM1 and the clock have their plug and play ids`() throws {
    for (id, code) in [
      ("PNP0A08", [0x41, 0xd0, 0x0a, 0x08]), ("PNP0C02", [0x41, 0xd0, 0x0c, 0x02]),
      ("PNP0501", [0x41, 0xd0, 0x05, 0x01]), ("PNP0B00", [0x41, 0xd0, 0x0b, 0x00]),
    ] as [(String, [UInt8])] {
      #expect(try contains(name("_HID", [0x0c] + code)), "\(id)")
    }
  }

  @Test func `the configuration space is reserved`() throws {
    let range = ACPIPlatform.configurationRange
    var descriptor: [UInt8] = [0x86, 9, 0, 1]
    descriptor.append(littleEndian: UInt32(range.lowerBound))
    descriptor.append(littleEndian: UInt32(range.upperBound - range.lowerBound))
    #expect(try contains(descriptor))
  }

  @Test func `the DSDT names the board's ports`() throws {
    for ports in [
      ports(0xcf8, count: 8), ports(0x3f8, count: 8) + [0x22, 1 << 4, 0], ports(0x70, count: 2),
      ports(ACPIPlatform.eventPort, count: 12), ports(ACPIPlatform.generalPurposeEventPort, count: 16),
      ports(0x510, count: 2), ports(ACPIPlatform.hotplugPort, count: UInt8(ACPIHotplug.regionSize)),
    ] {
      #expect(try contains(ports))
    }
  }

  @Test func `the DSDT names the board's windows`() throws {
    // Word address space: I/O, range 0x1000 to 0xffff.
    #expect(
      try contains([0x88, 0x0d, 0, 1, 0x0c, 3, 0, 0, 0, 0x10, 0xff, 0xff, 0, 0, 0, 0xf0]))
    // Word address space: bus 0. Root ports add further buses.
    #expect(try contains([0x88, 0x0d, 0, 2, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]))
    // Doubleword address space: memory, 0xc0000000 to 0xfebfffff.
    #expect(
      try contains([
        0x87, 0x17, 0, 0, 0x0c, 1, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0xbf, 0xfe, 0, 0, 0, 0, 0, 0, 0xc0, 0x3e,
      ]))
  }

  @Test func `_PRT routes each pin of each device to its GSI`() throws {
    func integer(_ value: UInt8) -> [UInt8] { value <= 1 ? [value] : [0x0a, value] }
    let table = try table()
    let start = try #require(table.indices.first { table[$0...].starts(with: Array("_PRT".utf8)) })
    // Name, PackageOp, length in two bytes, number of elements.
    #expect(table[start + 4] == 0x12)
    #expect(table[start + 7] == 128)
    var at = start + 8
    for device: UInt8 in 0..<32 {
      for pin: UInt8 in 0..<4 {
        let address: [UInt8] = device == 0 ? [0x0b, 0xff, 0xff] : [0x0c, 0xff, 0xff, device, 0]
        let content = [4] + address + integer(pin) + [0] + integer(16 + (device + pin) & 7)
        let entry = [0x12, UInt8(content.count + 1)] + content
        #expect(Array(table[at..<at + entry.count]) == entry, "device \(device), pin \(pin)")
        at += entry.count
      }
    }
  }

  @Test func `_S5 names the board's sleep type for soft-off`() throws {
    #expect(try contains([0x08] + Array("_S5_".utf8) + [0x12, 6, 4, PowerManagement.softOffSleepType, 0, 0, 0]))
  }
}
