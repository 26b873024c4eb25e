import Hardware
import Machine
import Testing

@Suite struct TypedOptionsTests {
  private func options<Options: QOMOptions>(
    _ type: Options.Type, _ assignments: (String, String?)...
  ) throws(PropertyError) -> Options {
    try Options(assignments.map { PropertyAssignment(name: $0.0, value: $0.1) })
  }

  @Test("defaults are QEMU's")
  func defaultsAreQEMUs() {
    let unit = IntelIOMMUOptions().unit
    #expect(!unit.scalableMode && !unit.firstStage && !unit.nested && unit.cachingMode == nil && !unit.deviceIOTLB)
    #expect(unit.addressWidth == 48 && unit.fs1gp && unit.dmaTranslation)
    #expect(unit.offersInterruptRemapping && unit.offersExtendedInterruptMode)
    let disk = VirtioBlockOptions().parameters
    #expect(disk.queueCount == nil && disk.queueSize == 256 && disk.logicalBlockSize == 512)
    #expect(disk.discard && disk.writeZeroes && disk.transport.eventIndex && !disk.transport.iommuPlatform)
    #expect(DebugExitOptions().base == 0xf4 && DebugExitOptions().size == 4)
  }

  @Test("every property reaches its field")
  func everyPropertyReachesItsField() throws {
    let unit = try options(
      IntelIOMMUOptions.self, ("id", "iommu0"), ("x-scalable-mode", "on"), ("x-flts", "on"), ("x-nested", "on"),
      ("aw-bits", "57"), ("intremap", "off"), ("eim", "off"), ("caching-mode", "on"), ("device-iotlb", "on"),
      ("snoop-control", "on"), ("pasid-bits", "20"), ("fs1gp", "off"), ("stale-tm", "on"))
    var expected = IntelIOMMUOptions()
    expected.id = try Identifier(text: "iommu0")
    expected.unit.scalableMode = true
    expected.unit.firstStage = true
    expected.unit.nested = true
    expected.unit.addressWidth = 57
    expected.unit.interruptRemapping = false
    expected.unit.extendedInterruptMode = false
    expected.unit.cachingMode = true
    expected.unit.deviceIOTLB = true
    expected.unit.snoopControl = true
    expected.unit.pasidBits = 20
    expected.unit.fs1gp = false
    expected.unit.ignoresTransientMapping = true
    #expect(unit == expected)
    #expect(try !options(IntelIOMMUOptions.self, ("dma-translation", "off")).unit.dmaTranslation)

    let disk = try options(
      VirtioBlockOptions.self, ("drive", "d0"), ("num-queues", "4"), ("queue-size", "128"), ("serial", "NEST1"),
      ("logical_block_size", "4K"), ("discard", "off"), ("write-zeroes", "off"), ("iommu_platform", "on"),
      ("event_idx", "off"), ("addr", "05.0"))
    var expectedDisk = VirtioBlockOptions()
    expectedDisk.drive = "d0"
    expectedDisk.parameters.queueCount = 4
    expectedDisk.parameters.queueSize = 128
    expectedDisk.parameters.serial = "NEST1"
    expectedDisk.parameters.logicalBlockSize = 4096
    expectedDisk.parameters.discard = false
    expectedDisk.parameters.writeZeroes = false
    expectedDisk.parameters.transport.iommuPlatform = true
    expectedDisk.parameters.transport.eventIndex = false
    expectedDisk.function.address = RequesterID(bus: 0, device: 5, function: 0)
    #expect(disk == expectedDisk)

    let exit = try options(DebugExitOptions.self, ("iobase", "0x501"), ("iosize", "0x02"))
    #expect(exit.base == 0x501 && exit.size == 2)
  }

  @Test("each word for true turns a property on", arguments: ["on", "yes", "true", "y"])
  func trueWords(_ word: String) throws {
    #expect(try options(IntelIOMMUOptions.self, ("caching-mode", word)).unit.cachingMode == true)
  }

  @Test("each word for false turns a property off", arguments: ["off", "no", "false", "n"])
  func falseWords(_ word: String) throws {
    #expect(try !options(IntelIOMMUOptions.self, ("fs1gp", word)).unit.fs1gp)
  }

  @Test("a bare name turns a flag on, and a leading no turns it off")
  func bareNamesAreFlags() throws {
    #expect(try options(IntelIOMMUOptions.self, ("caching-mode", nil)).unit.cachingMode == true)
    #expect(try !options(IntelIOMMUOptions.self, ("nofs1gp", nil)).unit.fs1gp)
    #expect(throws: PropertyError.self) { try options(IntelIOMMUOptions.self, ("nofs1gp", "on")) }
  }

  @Test("both spellings mean one property, and a contradiction between them is refused")
  func bothSpellingsMeanOneProperty() throws {
    let old = try options(IntelIOMMUOptions.self, ("x-scalable-mode", "on"), ("x-flts", "on"))
    let new = try options(IntelIOMMUOptions.self, ("scalable-mode", "on"), ("fsts", "on"))
    let both = try options(
      IntelIOMMUOptions.self, ("scalable-mode", "on"), ("x-scalable-mode", "yes"), ("fsts", "y"), ("x-flts", "on"))
    #expect(old == new)
    #expect(both == new)
    #expect(throws: PropertyError.contradiction(name: "x-flts", otherName: "fsts")) {
      try options(IntelIOMMUOptions.self, ("scalable-mode", "on"), ("x-flts", "on"), ("fsts", "off"))
    }
  }

  @Test("of two values for one property the later one wins")
  func theLaterOfTwoEqualNamesWins() throws {
    #expect(try options(IntelIOMMUOptions.self, ("aw-bits", "39"), ("aw-bits", "48")).unit.addressWidth == 48)
  }

  @Test("a value of the wrong type is refused with its reason")
  func valuesOutOfTypeAreNamed() {
    func fails(_ name: String, _ text: String, _ error: ValueError) {
      #expect(throws: PropertyError.value(name: name, text: text, error)) {
        try options(VirtioBlockOptions.self, ("drive", "d"), (name, text))
      }
    }
    fails("event_idx", "maybe", .notBoolean)
    fails("num-queues", "0", .outOfRange(lowest: 1, highest: 256))
    fails("num-queues", "65536", .outOfRange(lowest: 0, highest: 65535))
    fails("num-queues", "four", .notNumber)
    fails("queue-size", "100", .notPowerOfTwo(lowest: 4, highest: 1024))
    fails("queue-size", "2048", .notPowerOfTwo(lowest: 4, highest: 1024))
    fails("logical_block_size", "1000", .notPowerOfTwo(lowest: 512, highest: 2 << 20))
    fails("logical_block_size", "x", .notSize)
    fails("serial", "123456789012345678901", .tooLong(bytes: 20))
    fails("drive", "", .empty)
    fails("addr", "20", .notPCIAddress)
    fails("addr", "5.8", .notPCIAddress)
    fails("addr", "", .notPCIAddress)
    fails("id", "0abc", .notIdentifier)
    fails("id", "", .notIdentifier)
    fails("disable-modern", "on", .refused(reason: "devices are virtio 1.x only"))
    fails("disable-legacy", "off", .refused(reason: "devices are virtio 1.x only"))
    fails("disable-legacy", "x", .notOneOf(["on", "off", "auto"]))
  }

  @Test(
    "an address may be written in decimal or hexadecimal, with or without its function",
    arguments: ["06", "6", "06.0", "6.0", "0x6", "0x6.0x0"])
  func addresses(_ text: String) throws {
    let disk = try options(VirtioBlockOptions.self, ("drive", "d"), ("addr", text))
    #expect(disk.function.address == RequesterID(bus: 0, device: 6, function: 0))
  }

  @Test func `an address has a function from 0 to 7`() throws {
    let device = try options(VirtioRNGOptions.self, ("addr", "06.7"), ("multifunction", "on"))
    #expect(device.function.address == RequesterID(bus: 0, device: 6, function: 7))
    #expect(device.function.isMultifunction)
  }

  @Test(
    "property values that the unit cannot combine are refused",
    arguments: [
      [("x-flts", "on")],
      [("x-nested", "on"), ("x-flts", "on")],
      [("x-scalable-mode", "on"), ("x-flts", "on"), ("aw-bits", "39")],
      [("pasid-bits", "16")],
      [("eim", "on"), ("intremap", "off")],
      [("x-scalable-mode", "on"), ("x-flts", "on"), ("dma-translation", "off")],
      [("stale-tm", "on")],
    ])
  func rulesOfTheUnit(_ assignments: [(String, String)]) {
    do throws(PropertyError) {
      _ = try IntelIOMMUOptions(assignments.map { PropertyAssignment(name: $0.0, value: $0.1) })
      Issue.record("accepted \(assignments)")
    } catch {
      guard case .unit = error else {
        Issue.record("\(error)")
        return
      }
    }
  }

  @Test("automatic extended interrupt mode is on exactly if interrupt remapping is")
  func interruptModesFollowOneAnother() throws {
    let off = try options(IntelIOMMUOptions.self, ("intremap", "off"))
    #expect(!off.unit.offersInterruptRemapping && !off.unit.offersExtendedInterruptMode)
    let auto = try options(IntelIOMMUOptions.self, ("intremap", "auto"), ("eim", "auto"))
    #expect(auto.unit.offersInterruptRemapping && auto.unit.offersExtendedInterruptMode)
    #expect(try !options(IntelIOMMUOptions.self, ("eim", "off")).unit.offersExtendedInterruptMode)
  }

  @Test("no type and no property is named twice, and every property has a help text")
  func tablesNameNothingTwice() {
    let types: [any QOMOptions.Type] = DeviceTypes.all + ObjectTypes.all
    #expect(Set(types.map { $0.typeName }).count == types.count)
    for type in types {
      let names = type.propertyDescriptions.flatMap { [$0.name] + $0.aliases }
      #expect(Set(names).count == names.count, "\(type.typeName)")
      #expect(type.propertyDescriptions.allSatisfy { !$0.help.isEmpty })
    }
  }

  @Test("every default is a valid value of its property")
  func everyDefaultIsAValueOfItsProperty() {
    for type in DeviceTypes.all {
      for property in type.propertyDescriptions {
        guard let text = property.defaultText, !text.isEmpty else { continue }
        do throws(PropertyError) {
          _ = try type.init([PropertyAssignment(name: property.name, value: text)])
        } catch {
          // A default may require other properties, but its type is never wrong.
          switch error {
          case .rule, .unit: continue
          default: Issue.record("\(type.typeName).\(property.name)=\(text): \(error)")
          }
        }
      }
    }
  }

  @Test("a device type is found by either of its names")
  func kindsAreFoundByEitherName() {
    #expect(DeviceTypes.named("virtio-blk") == VirtioBlockOptions.self)
    #expect(DeviceTypes.named("virtio-blk-pci") == VirtioBlockOptions.self)
    #expect(DeviceTypes.named("nosuch") == nil)
    #expect(ObjectTypes.named("rng-random") == RNGRandomOptions.self)
  }
}
