import Hardware
import Testing

@testable import Machine

/// Tests several remapping units: which devices each covers, and how the DMAR table describes them.
struct UnitPlacementTests {
  private func unit(_ devices: String?, id: String? = nil, _ change: (inout IntelIOMMUOptions) -> Void = { _ in })
    throws -> IntelIOMMUOptions
  {
    var options = IntelIOMMUOptions()
    options.devices = try devices.map { try DeviceNames(text: $0) }
    options.id = try id.map { try Identifier(text: $0) }
    change(&options)
    return options
  }

  private func random(_ id: String, at device: UInt8? = nil) throws -> VirtioRNGOptions {
    var options = VirtioRNGOptions()
    options.id = try Identifier(text: id)
    options.function.address = device.map { RequesterID(bus: 0, device: $0, function: 0) }
    return options
  }

  private func place(_ devices: [any DeviceOptions]) throws -> [UnitPlacement] {
    var configuration = MachineConfiguration()
    configuration.devices = devices
    return try configuration.unitPlacement(try configuration.devicePlacement())
  }

  private func address(_ device: UInt8) -> PCIPlace { PCIPlace(RequesterID(bus: 0, device: device, function: 0)) }

  @Test("a single unit covers all devices")
  func oneUnitHasAll() throws {
    let units = try place([unit(nil), random("a")])
    #expect(units.map(\.name) == ["iommu0"])
    #expect(units[0].includesAll && units[0].hasIOAPIC && units[0].functions.isEmpty)
    #expect(units[0].registerBase == 0xfed9_0000)
    #expect(try place([random("a")]).isEmpty)
  }

  @Test("each unit covers the devices it names, and the unit that names none covers the rest")
  func unitsNameTheirDevices() throws {
    let units = try place([
      unit(nil, id: "rest"), random("a"), unit("b+06.0"), random("b", at: 9), unit("00:07.0+1f", id: "last"),
    ])
    #expect(units.map(\.name) == ["rest", "iommu1", "last"])
    #expect(units.map(\.registerBase) == [0xfed9_0000, 0xfed9_1000, 0xfed9_2000])
    #expect(units.map(\.includesAll) == [true, false, false])
    #expect(units.map(\.hasIOAPIC) == [true, false, false])
    #expect(units.map(\.functions) == [[], [address(6), address(9)], [address(7), address(0x1f)]])
  }

  @Test("an id that looks like an address is found before the address")
  func anIdentifierMayLookLikeAnAddress() throws {
    #expect(try place([unit("a"), random("a", at: 3)])[0].functions == [address(3)])
    #expect(try place([unit("a"), random("b", at: 3)])[0].functions == [address(10)])
  }

  @Test("one unit can name the IOAPIC, and a second one is refused")
  func theIOAPICCanBeNamed() throws {
    let units = try place([unit(nil), unit("ioapic+04.0")])
    #expect(units.map(\.hasIOAPIC) == [false, true])
    // Without a unit that covers all other devices, the IOAPIC is not remapped unless a unit names it.
    #expect(try place([unit("04.0")]).map(\.hasIOAPIC) == [false])
    #expect(throws: ConfigurationError.device(index: 1, .deviceHasUnit("ioapic", nil))) {
      try place([unit("ioapic"), unit("ioapic")])
    }
  }

  @Test("there can be sixteen units, and no more")
  func thereAreSixteen() throws {
    let units = try (1...17).map { try unit(String($0, radix: 16)) }
    #expect(try place(Array(units.prefix(16))).last?.registerBase == 0xfed9_f000)
    #expect(throws: ConfigurationError.device(index: 16, .tooManyUnits(highest: 16))) { try place(units) }
  }

  @Test("the DMAR table describes each unit")
  func theDMARTableTellsOfEach() throws {
    let units = try place([
      unit(nil) { $0.unit.addressWidth = 39 }, random("a", at: 4),
      unit("a+02.0") {
        $0.unit.scalableMode = true
        $0.unit.addressWidth = 57
        $0.unit.snoopControl = true
      },
    ])
    let tables = try ACPITables.build(ACPIConfiguration(localAPICs: [0], remapping: DMARemapping(units)))
    #expect(
      try #require(tables.table("DMAR"))[36...] == [
        56, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,  // the larger of the widths, INTR_REMAP
        0, 0, 32, 0, 0, 0, 0, 0, 0, 0x10, 0xd9, 0xfe, 0, 0, 0, 0,  // DRHD of the second
        1, 8, 0, 0, 0, 0, 2, 0, 1, 8, 0, 0, 0, 0, 4, 0,  // 00:02.0, 00:04.0
        0, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0,  // DRHD of the first, with INCLUDE_PCI_ALL
        3, 8, 0, 0, 0, 0xff, 0, 0,  // I/O APIC
      ])
  }

  /// The guest is asked to stay out of x2APIC mode if any unit lacks 32-bit destinations.
  @Test("the DMAR flags depend on all units together")
  func unlikeUnitsShareFlags() throws {
    let some = DMARemapping(try place([unit(nil), unit("04.0") { $0.unit.extendedInterruptMode = false }]))
    #expect(some.interruptRemapping && some.x2APICOptOut)
    #expect(some.translationServices.isEmpty)
    let other = DMARemapping(
      try place([
        unit(nil) { $0.unit.interruptRemapping = false }, unit("04.0") { $0.unit.deviceIOTLB = true },
      ]))
    #expect(other.interruptRemapping && other.x2APICOptOut)
    #expect(other.translationServices == [DMARemapping.TranslationServices()])
  }
}
