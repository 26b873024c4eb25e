import Hardware
import Testing

@testable import Machine

/// Compares the SSDT's slots with the bytes that iasl compiles from the same text with `-on` (keep names as written).
@Suite struct SlotDevicesTests {
  private static let slots = [
    HotplugSlot(port: RequesterID(bus: 0, device: 2, function: 0), number: 3),
    HotplugSlot(port: RequesterID(bus: 0, device: 0x1d, function: 5), number: 0x1fff),
  ]

  /// Returns the SSDT's bytes from the host bridge's scope on.
  private func scope(_ configuration: ACPIConfiguration) throws -> [UInt8] {
    let table = try #require(ACPITables.build(configuration).table("SSDT"))
    // Four names of 15 bytes each precede the scope.
    return Array(table[(36 + 4 * 15)...])
  }

  private func text(_ text: String) -> [UInt8] { Array(text.utf8) }

  /// The scope of a machine without slots: Scope (\_SB.PCI0) { Method (PNTF, 2) {} }
  private var empty: [UInt8] {
    [0x10, 0x12, 0x5c, 0x2e] + text("_SB_PCI0") + [0x14, 6] + text("PNTF") + [2]
  }

  @Test func `each slot is a device below its port, and PNTF finds it by its index`() throws {
    var expected: [UInt8] = [0x10, 0x44, 0x0b, 0x5c, 0x2e] + text("_SB_PCI0")
    expected += [0x5b, 0x82, 0x3d] + text("S10_") + [0x08] + text("_ADR") + [0x0c, 0, 0, 2, 0]
    expected += [0x5b, 0x82, 0x2c] + text("S00_") + [0x08] + text("_ADR") + [0] + [0x08] + text("_SUN") + [0x0a, 3]
    expected += [0x14, 0x0b] + text("_EJ0") + [1] + text("PCEJ") + [0]
    expected += [0x14, 0x0d] + text("_OST") + [3] + text("POST") + [0, 0x68, 0x69]
    expected += [0x5b, 0x82, 0x3e] + text("SED_") + [0x08] + text("_ADR") + [0x0c, 5, 0, 0x1d, 0]
    expected += [0x5b, 0x82, 0x2d] + text("S00_") + [0x08] + text("_ADR") + [0] + [0x08] + text("_SUN")
    expected += [0x0b, 0xff, 0x1f]
    expected += [0x14, 0x0b] + text("_EJ0") + [1] + text("PCEJ") + [1]
    expected += [0x14, 0x0d] + text("_OST") + [3] + text("POST") + [1, 0x68, 0x69]
    expected += [0x14, 0x28] + text("PNTF") + [2]
    expected += [0xa0, 0x10, 0x93, 0x68, 0, 0x86, 0x5e, 0x2e] + text("S10_S00_") + [0x69]
    expected += [0xa0, 0x10, 0x93, 0x68, 1, 0x86, 0x5e, 0x2e] + text("SED_S00_") + [0x69]
    #expect(try scope(ACPIConfiguration(localAPICs: [0], hotplugSlots: Self.slots)) == expected)
  }

  @Test func `without slots, or with native hotplug, the SSDT has no slot devices`() throws {
    #expect(try scope(ACPIConfiguration(localAPICs: [0])) == empty)
    #expect(try scope(ACPIConfiguration(localAPICs: [0], hotplugWay: .native, hotplugSlots: Self.slots)) == empty)
  }

  @Test func `tables with a slot for each function of bus 0 fit below 1 MiB`() throws {
    let slots = (0...255).map { HotplugSlot(port: RequesterID(rawValue: $0), number: $0) }
    let tables = try ACPITables.build(ACPIConfiguration(localAPICs: Array(0..<4096), hotplugSlots: slots))
    #expect(tables.address + UInt64(tables.bytes.count) <= 0x10_0000)
  }
}
