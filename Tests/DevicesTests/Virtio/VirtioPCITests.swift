import Devices
import Hardware
import PCI
import TestSupport
import Testing

/// Tests the PCI transport as a driver sees it: virtio 1.2, 4.1.
@Suite struct VirtioPCITests {
  private static let offeredByAll: UInt64 = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40

  // MARK: Identity and capabilities

  @Test("the function shows its identity and its BARs")
  func identity() {
    let setup = EchoSetup()
    let config = setup.driver.config
    #expect(config(0x00, .doubleword) == 0x106a_1af4)
    #expect(config(0x08, .doubleword) == 0x0880_0001)
    #expect(config(0x2c, .doubleword) == 0x1100_1af4)
    #expect(config(0x3d, .byte) == 1)
    // Status: Capabilities List. BAR 4 is 64-bit and prefetchable, 16 KiB; BAR 1 is 32-bit, 4 KiB.
    #expect(config(0x06, .word) == 0x0010)
    #expect(config(0x20, .doubleword) & 0xf == 0xc)
    setup.pci.function.writeConfiguration(offset: 0x20, width: .doubleword, value: 0xffff_ffff)
    #expect(config(0x20, .doubleword) == 0xffff_c00c)
    setup.pci.function.writeConfiguration(offset: 0x14, width: .doubleword, value: 0xffff_ffff)
    #expect(config(0x14, .doubleword) == 0xffff_f000)
  }

  @Test("the capabilities give the place and size of each structure")
  func capabilitiesLeadToTheStructures() throws {
    let driver = EchoSetup().driver
    #expect(driver.capabilities.map(\.type) == [1, 2, 3, 4, 5])
    #expect(driver.capabilities.map(\.length) == [16, 20, 16, 16, 20])
    #expect(driver.capabilities.map(\.bar) == [4, 4, 4, 4, 0])
    #expect(driver.capabilities.map(\.structureOffset) == [0, 0x3000, 0x1000, 0x2000, 0])
    #expect(driver.capabilities.map(\.structureLength) == [0x3c, 8, 1, 8, 0])
    // notify_off_multiplier
    #expect(driver.config(try driver.capability(2).offset + 16, .doubleword) == 4)
  }

  @Test("the function is an integrated endpoint with function-level reset")
  func isAnIntegratedEndpointWithFunctionLevelReset() throws {
    let driver = EchoSetup().driver
    var pointer = Int(driver.config(0x34, .byte))
    while driver.config(pointer, .byte) != 0x10 {
      pointer = Int(driver.config(pointer + 1, .byte))
      try #require(pointer != 0)
    }
    #expect(driver.config(pointer + 2, .word)[bits: 4...7] == 9)
    #expect(driver.config(pointer + 4, .doubleword)[bit: 28])
  }

  @Test("the vectors option sets the number of vectors")
  func vectorsFollowTheOption() throws {
    var options = VirtioOptions()
    options.vectors = 0
    #expect(EchoSetup(options).pci.function.msix == nil)
    options.vectors = 300
    let layout = try #require(EchoSetup(options).pci.function.msix?.layout)
    #expect(layout.vectorCount == 300)
    #expect(layout.pendingOffset >= layout.tableSize)
    #expect(EchoSetup().pci.function.msix?.layout.vectorCount == 3)
  }

  // MARK: Negotiation and status

  @Test("offered features depend on the options")
  func offersWhatTheOptionsSay() throws {
    #expect(try EchoSetup().driver.offered() == Self.offeredByAll | 1 << 3)
    var options = VirtioOptions()
    options.eventIndex = false
    options.indirectDescriptors = false
    options.queueReset = false
    options.iommuPlatform = true
    #expect(try EchoSetup(options).driver.offered() == 1 << 3 | 1 << 32 | 1 << 33)
  }

  @Test("a driver without VERSION_1 is refused")
  func refusesADriverWithoutVersion1() throws {
    let driver = EchoSetup().driver
    #expect(throws: TestDriver.Failure.self) { try driver.negotiate(1 << 3) }
    #expect(try driver.status == 0x3)
    // Without FEATURES_OK, DRIVER_OK has no effect.
    try driver.setStatus(0xf)
    #expect(try driver.status == 0x3)
    try driver.negotiate(1 << 32)
  }

  @Test("features that were not offered are refused")
  func refusesWhatItDidNotOffer() throws {
    let driver = EchoSetup().driver
    #expect(throws: TestDriver.Failure.self) { try driver.negotiate(1 << 32 | 1 << 34) }
  }

  @Test("with iommu_platform a driver must accept ACCESS_PLATFORM")
  func insistsOnAccessPlatform() throws {
    var options = VirtioOptions()
    options.iommuPlatform = true
    let driver = EchoSetup(options).driver
    #expect(throws: TestDriver.Failure.self) { try driver.negotiate(1 << 32) }
    try driver.negotiate(1 << 32 | 1 << 33)
  }

  @Test("a driver that breaks a feature requirement is refused")
  func refusesAFeatureWithoutItsRequirement() throws {
    let device = EchoDevice(
      features: VirtioFeatures(rawValue: 0b11_1000),
      requirements: [.init(VirtioFeatures(bit: 5), requiresAnyOf: VirtioFeatures(rawValue: 0b01_1000))])
    let setup = EchoSetup(device: device)
    #expect(throws: TestDriver.Failure.self) { try setup.driver.negotiate(1 << 32 | 1 << 5) }
    try setup.driver.setStatus(0)
    #expect(throws: TestDriver.Failure.self) { try setup.driver.negotiate(1 << 32 | 1 << 5) }
    try setup.driver.negotiate(1 << 32 | 1 << 5 | 1 << 3)
    try setup.driver.negotiate(1 << 32 | 1 << 4)
  }

  @Test("the device receives the negotiated features once per start, before its queues are served")
  func deviceReceivesTheNegotiatedFeatures() throws {
    let setup = EchoSetup()
    try setup.driver.negotiate(1 << 32 | 1 << 3)
    #expect(setup.device.started == [])
    try setup.driver.start()
    try setup.driver.start()
    #expect(setup.device.started.map(\.rawValue) == [1 << 32 | 1 << 3])
    try setup.driver.negotiate(1 << 32)
    try setup.driver.start()
    #expect(setup.device.started.map(\.rawValue) == [1 << 32 | 1 << 3, 1 << 32])
  }

  @Test("features cannot change after they are accepted")
  func featuresAreFixedOnceAccepted() throws {
    let driver = EchoSetup().driver
    try driver.negotiate(1 << 32)
    try driver.setCommon(0x08, .doubleword, 0)
    try driver.setCommon(0x0c, .doubleword, 1 << 28)
    #expect(try driver.common(0x0c, .doubleword) == 0)
  }

  @Test("status bits stay until a reset")
  func statusBitsStayUntilReset() throws {
    let setup = EchoSetup()
    try setup.driver.negotiate()
    try setup.driver.start()
    try setup.driver.setStatus(0x80)
    #expect(try setup.driver.status == 0x8f)
    // Only the device sets DEVICE_NEEDS_RESET.
    try setup.driver.setStatus(0x40)
    #expect(try setup.driver.status == 0x8f)
    try setup.driver.setStatus(0)
    #expect(try setup.driver.status == 0)
    #expect(setup.device.resets == 2)
  }

  @Test("the common configuration reads back")
  func commonConfigurationReadsBack() throws {
    let driver = EchoSetup().driver
    #expect(try driver.common(0x12, .word) == 2)
    #expect(try driver.common(0x10, .word) == 0xffff)
    try driver.setCommon(0x16, .word, 1)
    #expect(try driver.common(0x18, .word) == 16)
    #expect(try driver.common(0x1a, .word) == 0xffff)
    #expect(try driver.common(0x1e, .word) == 1)
    // Sizes that the queue cannot have are ignored; a smaller power of two is accepted.
    for (size, expected): (UInt64, UInt64) in [(0, 16), (32, 16), (12, 16), (8, 8)] {
      try driver.setCommon(0x18, .word, size)
      #expect(try driver.common(0x18, .word) == expected)
    }
    // An address may be written whole or in halves. A vector that does not exist reads back as none.
    try driver.setCommon(0x20, .quadword, 0x1122_3344_5566_7788)
    #expect(try driver.common(0x20, .doubleword) == 0x5566_7788)
    try driver.setCommon(0x24, .doubleword, 0x99aa_bbcc)
    #expect(try driver.common(0x20, .quadword) == 0x99aa_bbcc_5566_7788)
    try driver.setCommon(0x1a, .word, 2)
    #expect(try driver.common(0x1a, .word) == 2)
    try driver.setCommon(0x1a, .word, 3)
    #expect(try driver.common(0x1a, .word) == 0xffff)
    // This queue does not exist.
    try driver.setCommon(0x16, .word, 2)
    #expect(try driver.common(0x18, .word) == 0)
    try driver.setCommon(0x1c, .word, 1)
    #expect(try driver.common(0x1c, .word) == 0)
    // Reads of any width and alignment see the same bytes.
    #expect(try driver.common(0x12, .doubleword) == 0x0000_0002)
    #expect(try driver.common(0x15, .word) == 0x0200)
    #expect(try driver.common(0x3a, .quadword) == 0)
  }

  @Test("the settings of an enabled queue cannot change")
  func anEnabledQueueIsFixed() throws {
    let setup = EchoSetup()
    try setup.driver.negotiate()
    let queue = try setup.driver.setUp(queue: 0, size: 32, at: EchoSetup.rings)
    try setup.driver.setCommon(0x18, .word, 8)
    try setup.driver.setCommon(0x20, .doubleword, 0)
    try setup.driver.setCommon(0x1c, .word, 0)
    #expect(try setup.driver.common(0x18, .word) == 32)
    #expect(try setup.driver.common(0x20, .doubleword) == queue.table)
    #expect(try setup.driver.common(0x1c, .word) == 1)
  }

  // MARK: The window in configuration space

  @Test("the window in configuration space reaches the structures and nothing else")
  func theWindowReachesTheStructures() throws {
    let setup = EchoSetup()
    let window = try setup.driver.capability(5).offset
    func aim(_ bar: UInt64, _ offset: UInt64, _ length: UInt64) {
      setup.pci.function.writeConfiguration(offset: window + 4, width: .byte, value: bar)
      setup.pci.function.writeConfiguration(offset: window + 8, width: .doubleword, value: offset)
      setup.pci.function.writeConfiguration(offset: window + 12, width: .doubleword, value: length)
    }
    let data = window + 16
    aim(4, 0x12, 2)
    #expect(setup.driver.config(data, .word) == 2)
    aim(4, 0x14, 1)
    setup.pci.function.writeConfiguration(offset: data, width: .byte, value: 1)
    #expect(setup.driver.config(data, .byte) == 1)
    #expect(setup.pci.status == [.acknowledge])
    aim(4, 0x2004, 4)
    #expect(setup.driver.config(data, .doubleword) == 0x0706_0504)
    #expect(setup.driver.config(data + 2, .word) == 0x0706)
    // These targets reach nothing: other BARs, odd lengths, misaligned or past the end. The data is then an ordinary
    // register.
    for (bar, offset, length): (UInt64, UInt64, UInt64) in [
      (1, 0, 4), (4, 0, 3), (4, 0, 8), (4, 0, 0), (4, 0x3ffe, 4), (4, 0x4000, 1), (4, 0xffff_ffff, 1),
    ] {
      aim(bar, offset, length)
      setup.pci.function.writeConfiguration(offset: data, width: .doubleword, value: 0x5a5a_0000)
      #expect(setup.driver.config(data, .doubleword) == 0x5a5a_0000)
    }
    #expect(setup.pci.status == [.acknowledge])
  }

  /// virtio 1.2, 4.1.4.9: a write of any part of pci_cfg_data writes its first `length` bytes.
  @Test("the window writes as many bytes as its length says, whichever part of the data the driver writes")
  func theWindowWritesItsLength() throws {
    let setup = EchoSetup()
    let window = try setup.driver.capability(5).offset
    let data = window + 16
    func aim(_ offset: UInt64, _ length: UInt64) {
      setup.pci.function.writeConfiguration(offset: window + 4, width: .byte, value: 4)
      setup.pci.function.writeConfiguration(offset: window + 8, width: .doubleword, value: offset)
      setup.pci.function.writeConfiguration(offset: window + 12, width: .doubleword, value: length)
    }
    func write(_ offset: Int, _ width: AccessWidth, _ value: UInt64) {
      setup.pci.function.writeConfiguration(offset: data + offset, width: width, value: value)
    }
    // driver_feature_select has four bytes: two writes of two bytes.
    aim(0x08, 4)
    write(0, .word, 0x5678)
    #expect(try setup.driver.common(0x08, .doubleword) == 0x5678)
    write(2, .word, 0x1234)
    #expect(try setup.driver.common(0x08, .doubleword) == 0x1234_5678)
    write(3, .byte, 0xab)
    #expect(try setup.driver.common(0x08, .doubleword) == 0xab34_5678)
    // queue_select has two bytes: one write of four bytes.
    aim(0x16, 2)
    write(0, .doubleword, 0xffff_0001)
    #expect(try setup.driver.common(0x16, .word) == 1)
    // A read puts the bytes it reads into the data, and a later write of other bytes combines with them.
    aim(0x08, 4)
    #expect(setup.driver.config(data, .byte) == 0x78)
    write(1, .byte, 0x99)
    #expect(try setup.driver.common(0x08, .doubleword) == 0xab34_9978)
  }
}
