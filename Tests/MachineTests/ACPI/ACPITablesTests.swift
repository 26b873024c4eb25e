import Glibc
import Hardware
import Testing

@testable import Machine

/// Compares the generated ACPI tables with the bytes that the specifications prescribe.
@Suite struct ACPITablesTests {
  private static let remapping = DMARemapping(
    hostAddressWidth: 48, interruptRemapping: true, x2APICOptOut: false,
    units: [DMARemapping.Unit(scopes: [.ioAPIC(id: 0, sourceID: RequesterID(rawValue: 0xff00))])])

  private static let configuration = ACPIConfiguration(
    localAPICs: [0, 1, 254, 255, 256], highWindow: 0x40_0000_0000..<0x80_0000_0000, remapping: remapping)

  private func build(_ configuration: ACPIConfiguration = Self.configuration) throws -> ACPITables {
    try ACPITables.build(configuration)
  }

  /// Returns a table's bytes after its header.
  private func body(_ signature: String, _ configuration: ACPIConfiguration = Self.configuration) throws -> [UInt8] {
    Array(try #require(build(configuration).table(signature))[36...])
  }

  /// Returns the SSDT's four named integers, which precede its devices.
  private func names(_ configuration: ACPIConfiguration = Self.configuration) throws -> [UInt8] {
    Array(try body("SSDT", configuration).prefix(4 * 15))
  }

  private func sum(_ bytes: some Sequence<UInt8>) -> UInt8 { bytes.reduce(0, &+) }

  @Test func `each table states its length, and its bytes sum to zero`() throws {
    let tables = try build()
    #expect(
      tables.tables.map(\.signature) == ["RSD PTR ", "FACS", "DSDT", "FACP", "APIC", "MCFG", "SSDT", "DMAR", "XSDT"])
    for table in tables.tables where !["RSD PTR ", "FACS"].contains(table.signature) {
      let bytes = Array(tables.bytes[table.range])
      #expect(Array(bytes[..<4]) == Array(table.signature.utf8))
      #expect(bytes.load(UInt32.self, at: 4) == UInt32(bytes.count))
      #expect(sum(bytes) == 0, "\(table.signature)")
      #expect(Array(bytes[10..<24]) == Array("NESTLINESTLING".utf8))
      #expect((tables.address + UInt64(table.range.lowerBound)) % 16 == 0)
    }
    for (one, next) in zip(tables.tables, tables.tables.dropFirst()) {
      #expect(one.range.upperBound <= next.range.lowerBound)
    }
    #expect(tables.tables.last?.range.upperBound == tables.bytes.count)
  }

  @Test func `the root pointer lies at 0xe0000 and leads to every table`() throws {
    let tables = try build()
    #expect(tables.address == 0xe_0000)
    #expect(tables.rootPointer == 0xe_0000)
    let root = Array(tables.bytes[..<36])
    #expect(Array(root[..<8]) == Array("RSD PTR ".utf8))
    #expect(Array(root[9..<16]) == Array("NESTLI".utf8) + [2])
    #expect(root.load(UInt32.self, at: 16) == 0)
    #expect(root.load(UInt32.self, at: 20) == 36)
    #expect(sum(root[..<20]) == 0)
    #expect(sum(root) == 0)

    func signature(_ address: UInt64) -> String {
      let start = Int(address - tables.address)
      return String(decoding: tables.bytes[start..<start + 4], as: UTF8.self)
    }
    #expect(signature(root.load(UInt64.self, at: 24)) == "XSDT")
    let pointers = try body("XSDT")
    let found = stride(from: 0, to: pointers.count, by: 8).map { signature(pointers.load(UInt64.self, at: $0)) }
    #expect(found == ["FACP", "APIC", "MCFG", "SSDT", "DMAR"])
    let fixed = try #require(tables.table("FACP"))
    #expect(signature(UInt64(fixed.load(UInt32.self, at: 36))) == "FACS")
    #expect(signature(UInt64(fixed.load(UInt32.self, at: 40))) == "DSDT")
    #expect(fixed.load(UInt64.self, at: 140) == UInt64(fixed.load(UInt32.self, at: 40)))
  }

  @Test func `without a remapping unit there is no DMAR table`() throws {
    var configuration = Self.configuration
    configuration.remapping = nil
    #expect(try build(configuration).table("DMAR") == nil)
    #expect(try body("XSDT", configuration).count == 4 * 8)
  }

  @Test func `the FADT names the board's ports, their lengths and the platform's features`() throws {
    var table = try #require(build().table("FACP"))
    #expect(table.count == 276)
    #expect(table[8] == 6)
    // Another test checks the pointers.
    for offset in [36, 40, 140] { table.store(UInt32(0), at: offset) }
    var expected = [UInt8](repeating: 0, count: 276)
    func put(_ offset: Int, _ bytes: UInt8...) { expected.replaceSubrange(offset..<offset + bytes.count, with: bytes) }
    put(46, 9)  // SCI_INT
    put(56, 0x00, 0x06)  // PM1a_EVT_BLK
    put(64, 0x04, 0x06)  // PM1a_CNT_BLK
    put(76, 0x08, 0x06)  // PM_TMR_BLK
    put(80, 0x20, 0x06)  // GPE0_BLK
    put(88, 4, 2, 0, 4, 16)  // lengths of PM1_EVT, PM1_CNT, PM2_CNT, PM_TMR, GPE0
    put(96, 0xff, 0x0f, 0xff, 0x0f)  // no C2, no C3
    put(108, 0x32)  // CENTURY
    put(109, 0x14, 0x00)  // IAPC_BOOT_ARCH: no VGA, no ASPM
    put(112, 0x65, 0x04, 0x00, 0x00)  // WBINVD, PROC_C1, SLP_BUTTON, FIX_RTC, RESET_REG_SUP
    put(116, 1, 8, 0, 1, 0xf9, 0x0c)  // RESET_REG
    put(128, 6)  // RESET_VALUE
    put(131, 5)  // minor version
    put(148, 1, 32, 0, 2, 0x00, 0x06)  // X_PM1a_EVT_BLK
    put(172, 1, 16, 0, 2, 0x04, 0x06)  // X_PM1a_CNT_BLK
    put(208, 1, 32, 0, 3, 0x08, 0x06)  // X_PM_TMR_BLK
    put(220, 1, 128, 0, 1, 0x20, 0x06)  // X_GPE0_BLK
    expected.replaceSubrange(268..<276, with: Array("NESTLING".utf8))
    #expect(Array(table[36...]) == Array(expected[36...]))
  }

  @Test func `the FACS is aligned to 64 bytes`() throws {
    let tables = try build()
    let table = try #require(tables.table("FACS"))
    var expected = Array("FACS".utf8) + [64] + [UInt8](repeating: 0, count: 59)
    expected[32] = 2
    #expect(table == expected)
    #expect(try #require(tables.tables.first { $0.signature == "FACS" }).range.lowerBound % 64 == 0)
  }

  @Test func `the MADT lists local APICs, x2APICs from id 255 on, the I/O APIC, the SCI and the NMI`() throws {
    #expect(
      try body("APIC") == [
        0, 0, 0xe0, 0xfe, 0, 0, 0, 0,  // local APICs; no 8259
        0, 8, 0, 0, 1, 0, 0, 0,  // CPU 0
        0, 8, 1, 1, 1, 0, 0, 0,
        0, 8, 2, 254, 1, 0, 0, 0,
        9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0,  // x2APIC 255
        9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0,  // x2APIC 256
        1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0,  // I/O APIC
        2, 10, 0, 9, 9, 0, 0, 0, 0x0f, 0,  // SCI: level, low
        4, 6, 0xff, 0, 0, 1,  // NMI on LINT1
        0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
      ])
    #expect(
      try body("APIC", ACPIConfiguration(localAPICs: [0])) == [
        0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0, 1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0,
        2, 10, 0, 9, 9, 0, 0, 0, 0x0f, 0, 4, 6, 0xff, 0, 0, 1,
      ])
  }

  @Test func `the MCFG places the configuration space of bus 0 at 0xb0000000`() throws {
    #expect(
      try body("MCFG") == [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
      ])
  }

  @Test func `the MCFG and the SSDT state the number of the last bus`() throws {
    var configuration = Self.configuration
    configuration.lastBus = 9
    #expect(try body("MCFG", configuration)[19] == 9)
    #expect(
      try names(configuration)[30..<45] == [0x08, 0x5c] + Array("LBUS".utf8) + [0x0e, 9, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test func `the SSDT states the base and length of the high window, or zeros if there is none`() throws {
    let zero: [UInt8] = [0, 0, 0, 0, 0, 0, 0, 0]
    func expected(_ base: [UInt8], _ length: [UInt8]) -> [UInt8] {
      func name(_ text: String, _ value: [UInt8]) -> [UInt8] { [0x08, 0x5c] + Array(text.utf8) + [0x0e] + value }
      return name("M64B", base) + name("M64L", length) + name("LBUS", zero) + name("NHPC", zero)
    }
    #expect(try names() == expected([0, 0, 0, 0, 0x40, 0, 0, 0], [0, 0, 0, 0, 0x40, 0, 0, 0]))
    #expect(try names(ACPIConfiguration(localAPICs: [0])) == expected(zero, zero))
  }

  @Test func `the SSDT states whether hotplug is native`() throws {
    var configuration = Self.configuration
    configuration.hotplugWay = .native
    #expect(
      try names(configuration).suffix(15) == [0x08, 0x5c] + Array("NHPC".utf8) + [0x0e, 1, 0, 0, 0, 0, 0, 0, 0])
  }

  @Test func `the DMAR table describes one unit with all PCI devices and the I/O APIC`() throws {
    #expect(
      try body("DMAR") == [
        47, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  // host address width, INTR_REMAP
        0, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0,  // DRHD, INCLUDE_PCI_ALL
        3, 8, 0, 0, 0, 0xff, 0, 0,  // I/O APIC 0, ff:00.0
      ])
  }

  @Test func `the DMAR flags show the options for interrupt remapping and x2APIC`() throws {
    for (remapping, optOut, flags) in [
      (false, false, 0), (true, false, 1), (true, true, 3), (false, true, 2),
    ] as [(Bool, Bool, UInt8)] {
      var configuration = Self.configuration
      configuration.remapping?.interruptRemapping = remapping
      configuration.remapping?.x2APICOptOut = optOut
      configuration.remapping?.hostAddressWidth = 39
      #expect(try Array(body("DMAR", configuration)[..<2]) == [38, flags])
    }
  }

  @Test func `in the DMAR table the INCLUDE_PCI_ALL unit comes after other units, and root ports with ATS come last`()
    throws
  {
    var configuration = Self.configuration
    configuration.remapping?.units.append(
      DMARemapping.Unit(
        registerBase: 0xfed9_1000, includesAll: false,
        scopes: [
          DMARemapping.DeviceScope(type: .endpoint, startBus: 0, path: [.init(device: 3, function: 1)]),
          DMARemapping.DeviceScope(
            type: .subHierarchy, startBus: 2,
            path: [.init(device: 0x1c, function: 0), .init(device: 4, function: 7)]),
        ]))
    configuration.remapping?.translationServices = [
      DMARemapping.TranslationServices(),
      DMARemapping.TranslationServices(
        allPorts: false,
        scopes: [DMARemapping.DeviceScope(type: .subHierarchy, startBus: 0, path: [.init(device: 5, function: 0)])]),
    ]
    #expect(
      try Array(body("DMAR", configuration)[12...]) == [
        0, 0, 34, 0, 0, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0,
        1, 8, 0, 0, 0, 0, 3, 1, 2, 10, 0, 0, 0, 2, 0x1c, 0, 4, 7,
        0, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0,
        3, 8, 0, 0, 0, 0xff, 0, 0,
        2, 0, 8, 0, 1, 0, 0, 0,
        2, 0, 16, 0, 0, 0, 0, 0, 2, 8, 0, 0, 0, 0, 5, 0,
      ])
  }

  @Test func `values and structures that do not fit into the tables are refused`() {
    #expect(throws: ACPIError.self) { try ACPITables.build(ACPIConfiguration(localAPICs: Array(0..<9000))) }
    var configuration = Self.configuration
    configuration.remapping?.hostAddressWidth = 0
    #expect(throws: ACPIError.hostAddressWidthInvalid(0)) { try ACPITables.build(configuration) }
    configuration = Self.configuration
    let step = DMARemapping.DeviceScope.Step(device: 0, function: 0)
    let long = DMARemapping.DeviceScope(
      type: .endpoint, startBus: 0, path: Array(repeating: step, count: 125))
    configuration.remapping?.units[0].scopes = [long]
    #expect(throws: ACPIError.structureTooLong(length: 256)) { try ACPITables.build(configuration) }
    let scope = DMARemapping.DeviceScope(type: .endpoint, startBus: 0, path: Array(repeating: step, count: 124))
    configuration.remapping?.units[0].scopes = Array(repeating: scope, count: 259)
    #expect(throws: ACPIError.structureTooLong(length: 16 + 254 * 259)) { try ACPITables.build(configuration) }
    configuration.remapping?.units[0].scopes = Array(repeating: scope, count: 257)
    #expect(throws: Never.self) { try ACPITables.build(configuration) }
  }

  @Test func `the tables of a large machine stay below 1 MiB`() throws {
    let tables = try build(ACPIConfiguration(localAPICs: Array(0..<4096), remapping: Self.remapping))
    #expect(tables.address + UInt64(tables.bytes.count) <= 0x10_0000)
  }

  /// Writes the tables to files for `Tests/acpi-check`, which passes them to iasl.
  @Test(.enabled(if: getenv("NESTLING_ACPI_DUMP") != nil, "NESTLING_ACPI_DUMP names no folder"))
  func `the tables are written to files for iasl`() throws {
    let folder = try #require(getenv("NESTLING_ACPI_DUMP").map { String(cString: $0) })
    let tables = try build()
    for table in tables.tables where table.signature != "RSD PTR " {
      let path = "\(folder)/\(table.signature.lowercased()).aml"
      let file = try #require(fopen(path, "w"))
      defer { fclose(file) }
      let bytes = Array(tables.bytes[table.range])
      #expect(fwrite(bytes, 1, bytes.count, file) == bytes.count)
    }
    // Several units.
    var several = Self.configuration
    var scope = Self.remapping.units[0]
    scope.registerBase += 0x1000
    scope.includesAll = false
    scope.scopes = (2..<5).map {
      DMARemapping.DeviceScope(type: .endpoint, startBus: 0, path: [.init(device: $0, function: 0)])
    }
    several.remapping?.units.append(scope)
    let units = try #require(build(several).table("DMAR"))
    let unitsFile = try #require(fopen("\(folder)/dmar-several.aml", "w"))
    defer { fclose(unitsFile) }
    #expect(fwrite(units, 1, units.count, unitsFile) == units.count)
    // Without a high window; with slots and ACPI hotplug; with slots and native hotplug.
    let slots = [2, 29].map { HotplugSlot(port: RequesterID(bus: 0, device: $0, function: 0), number: UInt16($0) + 1) }
    for (name, configuration) in [
      ("none", ACPIConfiguration(localAPICs: [0])),
      ("slots", ACPIConfiguration(localAPICs: [0], hotplugSlots: slots)),
      ("native", ACPIConfiguration(localAPICs: [0], hotplugWay: .native, hotplugSlots: slots)),
    ] {
      let values = try #require(build(configuration).table("SSDT"))
      let file = try #require(fopen("\(folder)/ssdt-\(name).aml", "w"))
      defer { fclose(file) }
      #expect(fwrite(values, 1, values.count, file) == values.count)
    }
  }
}
