import Devices
import Hardware
import PCI
import TestSupport
import Testing

/// The PCI transport as a driver sees it: virtio 1.2, 4.1.
@Suite struct VirtioPCITests {
  /// Rings and data of the tests in RAM.
  private static let rings: UInt64 = 0x1_0000
  private static let data: UInt64 = 0x8_0000
  private static let offeredByAll: UInt64 = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40

  private struct Setup {
    let board: TestBoard
    let device = EchoDevice()
    let pci: VirtioPCI
    let driver: TestDriver

    init(_ options: VirtioOptions = VirtioOptions(), board: TestBoard = TestBoard()) {
      self.board = board
      pci = VirtioPCI(
        device: device, options: options, environment: board.environment,
        address: RequesterID(bus: 0, device: 3, function: 0))
      board.plug(pci)
      driver = TestDriver(pci, on: board)
    }

    /// Negotiates, sets queue 0 up and starts.
    func run(_ features: UInt64? = nil, vector: UInt16 = 0xffff) throws -> DriverQueue {
      try driver.negotiate(features)
      let queue = try driver.setUp(queue: 0, at: VirtioPCITests.rings, vector: vector)
      try driver.start()
      return queue
    }

    /// Sends bytes through queue 0 and returns what came back.
    func echo(_ bytes: [UInt8], _ queue: inout DriverQueue) throws -> [UInt8]? {
      board.memory.store(bytes, at: VirtioPCITests.data)
      queue.submit([
        .readable(VirtioPCITests.data, bytes.count), .writable(VirtioPCITests.data + 0x1000, bytes.count),
      ])
      try driver.notify(0)
      guard queue.takeUsed().last?.length == UInt32(bytes.count) else { return nil }
      return board.memory.copy(VirtioPCITests.data + 0x1000, count: bytes.count)
    }
  }

  // MARK: What the function shows

  @Test func identity() {
    let setup = Setup()
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

  @Test func capabilitiesLeadToTheStructures() throws {
    let driver = Setup().driver
    #expect(driver.capabilities.map(\.type) == [1, 2, 3, 4, 5])
    #expect(driver.capabilities.map(\.length) == [16, 20, 16, 16, 20])
    #expect(driver.capabilities.map(\.bar) == [4, 4, 4, 4, 0])
    #expect(driver.capabilities.map(\.structureOffset) == [0, 0x3000, 0x1000, 0x2000, 0])
    #expect(driver.capabilities.map(\.structureLength) == [0x3c, 8, 1, 8, 0])
    // notify_off_multiplier
    #expect(driver.config(try driver.capability(2).offset + 16, .doubleword) == 4)
  }

  @Test func isAnIntegratedEndpointWithFunctionLevelReset() throws {
    let driver = Setup().driver
    var pointer = Int(driver.config(0x34, .byte))
    while driver.config(pointer, .byte) != 0x10 {
      pointer = Int(driver.config(pointer + 1, .byte))
      try #require(pointer != 0)
    }
    #expect(driver.config(pointer + 2, .word)[bits: 4...7] == 9)
    #expect(driver.config(pointer + 4, .doubleword)[bit: 28])
  }

  @Test func vectorsFollowTheOption() throws {
    var options = VirtioOptions()
    options.vectors = 0
    #expect(Setup(options).pci.function.msix == nil)
    options.vectors = 300
    let layout = try #require(Setup(options).pci.function.msix?.layout)
    #expect(layout.vectorCount == 300)
    #expect(layout.pendingOffset >= layout.tableSize)
    #expect(Setup().pci.function.msix?.layout.vectorCount == 3)
  }

  // MARK: Negotiation and status

  @Test func offersWhatTheOptionsSay() throws {
    #expect(try Setup().driver.offered() == Self.offeredByAll | 1 << 3)
    var options = VirtioOptions()
    options.eventIndex = false
    options.indirectDescriptors = false
    options.queueReset = false
    options.iommuPlatform = true
    #expect(try Setup(options).driver.offered() == 1 << 3 | 1 << 32 | 1 << 33)
  }

  @Test func refusesADriverWithoutVersion1() throws {
    let driver = Setup().driver
    #expect(throws: TestDriver.Failure.self) { try driver.negotiate(1 << 3) }
    #expect(try driver.status == 0x3)
    // DRIVER_OK means nothing then.
    try driver.setStatus(0xf)
    #expect(try driver.status == 0x3)
    try driver.negotiate(1 << 32)
  }

  @Test func refusesWhatItDidNotOffer() throws {
    let driver = Setup().driver
    #expect(throws: TestDriver.Failure.self) { try driver.negotiate(1 << 32 | 1 << 34) }
  }

  @Test func insistsOnAccessPlatform() throws {
    var options = VirtioOptions()
    options.iommuPlatform = true
    let driver = Setup(options).driver
    #expect(throws: TestDriver.Failure.self) { try driver.negotiate(1 << 32) }
    try driver.negotiate(1 << 32 | 1 << 33)
  }

  @Test func featuresAreFixedOnceAccepted() throws {
    let driver = Setup().driver
    try driver.negotiate(1 << 32)
    try driver.setCommon(0x08, .doubleword, 0)
    try driver.setCommon(0x0c, .doubleword, 1 << 28)
    #expect(try driver.common(0x0c, .doubleword) == 0)
  }

  @Test func statusBitsStayUntilReset() throws {
    let setup = Setup()
    try setup.driver.negotiate()
    try setup.driver.start()
    try setup.driver.setStatus(0x80)
    #expect(try setup.driver.status == 0x8f)
    // DEVICE_NEEDS_RESET is the device's own.
    try setup.driver.setStatus(0x40)
    #expect(try setup.driver.status == 0x8f)
    try setup.driver.setStatus(0)
    #expect(try setup.driver.status == 0)
    #expect(setup.device.resets == 2)
  }

  @Test func commonConfigurationReadsBack() throws {
    let driver = Setup().driver
    #expect(try driver.common(0x12, .word) == 2)
    #expect(try driver.common(0x10, .word) == 0xffff)
    try driver.setCommon(0x16, .word, 1)
    #expect(try driver.common(0x18, .word) == 16)
    #expect(try driver.common(0x1a, .word) == 0xffff)
    #expect(try driver.common(0x1e, .word) == 1)
    // Sizes that no queue can have are ignored, smaller powers of two are not.
    for (size, expected): (UInt64, UInt64) in [(0, 16), (32, 16), (12, 16), (8, 8)] {
      try driver.setCommon(0x18, .word, size)
      #expect(try driver.common(0x18, .word) == expected)
    }
    // An address whole or in halves; a vector that is not there reads back as none.
    try driver.setCommon(0x20, .quadword, 0x1122_3344_5566_7788)
    #expect(try driver.common(0x20, .doubleword) == 0x5566_7788)
    try driver.setCommon(0x24, .doubleword, 0x99aa_bbcc)
    #expect(try driver.common(0x20, .quadword) == 0x99aa_bbcc_5566_7788)
    try driver.setCommon(0x1a, .word, 2)
    #expect(try driver.common(0x1a, .word) == 2)
    try driver.setCommon(0x1a, .word, 3)
    #expect(try driver.common(0x1a, .word) == 0xffff)
    // A queue that is not there.
    try driver.setCommon(0x16, .word, 2)
    #expect(try driver.common(0x18, .word) == 0)
    try driver.setCommon(0x1c, .word, 1)
    #expect(try driver.common(0x1c, .word) == 0)
    // Reads of any width and alignment see the same bytes.
    #expect(try driver.common(0x12, .doubleword) == 0x0000_0002)
    #expect(try driver.common(0x15, .word) == 0x0200)
    #expect(try driver.common(0x3a, .quadword) == 0)
  }

  @Test func anEnabledQueueIsFixed() throws {
    let setup = Setup()
    try setup.driver.negotiate()
    let queue = try setup.driver.setUp(queue: 0, size: 32, at: Self.rings)
    try setup.driver.setCommon(0x18, .word, 8)
    try setup.driver.setCommon(0x20, .doubleword, 0)
    try setup.driver.setCommon(0x1c, .word, 0)
    #expect(try setup.driver.common(0x18, .word) == 32)
    #expect(try setup.driver.common(0x20, .doubleword) == queue.table)
    #expect(try setup.driver.common(0x1c, .word) == 1)
  }

  // MARK: Work

  @Test func servesAQueueOnNotification() throws {
    let setup = Setup()
    var queue = try setup.run()
    #expect(try setup.echo([1, 2, 3, 4], &queue) == [1, 2, 3, 4])
    #expect(try setup.echo([5], &queue) == [5])
  }

  @Test func servesNothingBeforeDriverOKAndWhatWaitedThen() throws {
    let setup = Setup()
    try setup.driver.negotiate()
    var queue = try setup.driver.setUp(queue: 0, at: Self.rings)
    queue.submit([.readable(Self.data, 4), .writable(Self.data + 0x1000, 4)])
    try setup.driver.notify(0)
    #expect(setup.device.processed == 0)
    #expect(queue.takeUsed() == [])
    try setup.driver.start()
    #expect(queue.takeUsed() == [.init(id: 0, length: 4)])
  }

  @Test func notificationsNameTheirQueueByAddress() throws {
    let setup = Setup()
    _ = try setup.run()
    var second = try setup.driver.setUp(queue: 1, at: Self.rings + DriverQueue.footprint)
    second.submit([.readable(Self.data, 4), .writable(Self.data + 0x1000, 4)])
    try setup.driver.write(2, 0, .word, 1)
    #expect(second.takeUsed() == [])
    try setup.driver.write(2, 4, .doubleword, 0)
    #expect(second.takeUsed().count == 1)
    // Past the last queue, and askew.
    try setup.driver.write(2, 8, .word, 0)
    try setup.driver.write(2, 0xffe, .word, 0)
  }

  @Test func doorbellsFollowTheBAR() throws {
    let setup = Setup()
    let base = TestBoard.structuresBase + 0x3000
    #expect(setup.board.workers.workers.map(\.doorbell) == [base, base + 4])
    // Decoding off while software sizes the BAR, then on at another place.
    setup.pci.function.writeConfiguration(offset: 4, width: .word, value: 0)
    #expect(setup.board.workers.workers.map(\.doorbell) == [nil, nil])
    setup.pci.function.writeConfiguration(offset: 0x20, width: .doubleword, value: 0xd000_0000)
    setup.pci.function.writeConfiguration(offset: 0x24, width: .doubleword, value: 0)
    setup.pci.function.writeConfiguration(offset: 4, width: .word, value: 2)
    #expect(setup.board.workers.workers.map(\.doorbell) == [0xd000_3000, 0xd000_3004])
    var queue = try setup.run()
    #expect(try setup.echo([9], &queue) == [9])
  }

  @Test func messagesGoToTheirVectors() throws {
    let setup = Setup()
    setup.driver.enableMSIX(vectors: 3)
    try setup.driver.negotiate(1 << 32)
    try setup.driver.setCommon(0x10, .word, 2)
    var queue = try setup.driver.setUp(queue: 0, at: Self.rings, vector: 1)
    try setup.driver.start()
    _ = try setup.echo([1], &queue)
    #expect(setup.driver.messages == [0x41])
    #expect(setup.board.router.deliveries.map(\.requester) == [RequesterID(bus: 0, device: 3, function: 0)])
    setup.device.transport?.configurationChanged()
    #expect(setup.driver.messages == [0x41, 0x42])
    #expect(!setup.board.line.asserted)
    // The status tells of the configuration alone, and no wire is left asserted behind it.
    #expect(setup.driver.config(0x06, .word)[bit: 3] == false)
    #expect(try setup.driver.read(3, 0, .byte) == 2)
    // Without a vector there is no message.
    try setup.driver.setCommon(0x16, .word, 0)
    try setup.driver.setCommon(0x1a, .word, 0xffff)
    _ = try setup.echo([1], &queue)
    #expect(setup.driver.messages == [0x41, 0x42])
  }

  @Test func withoutMSIXTheStatusAndTheWireTell() throws {
    let setup = Setup()
    var queue = try setup.run(1 << 32)
    #expect(!setup.board.line.asserted)
    _ = try setup.echo([1], &queue)
    #expect(setup.board.line.asserted)
    setup.device.transport?.configurationChanged()
    #expect(try setup.driver.read(3, 0, .byte) == 3)
    #expect(!setup.board.line.asserted)
    #expect(try setup.driver.read(3, 0, .byte) == 0)
    queue.setNoInterrupt(true)
    _ = try setup.echo([1], &queue)
    #expect(!setup.board.line.asserted)
  }

  @Test func theGenerationCountsConfigurationChanges() throws {
    let setup = Setup()
    let before = try setup.driver.common(0x15, .byte)
    setup.device.transport?.configurationChanged()
    #expect(try setup.driver.common(0x15, .byte) == before + 1)
    // No driver, no interrupt.
    #expect(!setup.board.line.asserted)
  }

  @Test func deviceConfigurationIsTheDevices() throws {
    let driver = Setup().driver
    #expect(try driver.read(4, 2, .doubleword) == 0x0504_0302)
    try driver.write(4, 6, .word, 0xaabb)
    #expect(try driver.read(4, 0, .quadword) == 0xaabb_0504_0302_0100)
    // Past its end: zero, and no write.
    try driver.write(4, 7, .word, 0x1111)
    #expect(try driver.read(4, 7, .word) == 0xaa)
    #expect(try driver.read(4, 0xffc, .doubleword) == 0)
  }

  @Test func wakesAQueueForItsDevice() throws {
    let setup = Setup()
    var queue = try setup.run()
    queue.submit([.readable(Self.data, 1), .writable(Self.data + 0x1000, 1)])
    setup.device.transport?.wake(queue: 0)
    #expect(queue.takeUsed().count == 1)
    setup.device.transport?.wake(queue: 7)
  }

  // MARK: Failure and reset

  @Test func malformedRingsAskForAReset() throws {
    let setup = Setup()
    setup.driver.enableMSIX(vectors: 3)
    try setup.driver.negotiate(1 << 32)
    try setup.driver.setCommon(0x10, .word, 0)
    var queue = try setup.driver.setUp(queue: 0, at: Self.rings, vector: 1)
    var second = try setup.driver.setUp(queue: 1, at: Self.rings + DriverQueue.footprint, vector: 2)
    try setup.driver.start()
    queue.offer(0x4000)
    try setup.driver.notify(0)
    #expect(try setup.driver.status == 0x4f)
    #expect(setup.driver.messages == [0x40])
    // The rest of the device stands still, too, and says so once.
    second.submit([.readable(Self.data, 1), .writable(Self.data + 0x1000, 1)])
    try setup.driver.notify(1)
    try setup.driver.notify(0)
    #expect(second.takeUsed() == [])
    #expect(setup.driver.messages == [0x40])
    // A reset cures it.
    setup.board.memory.store([UInt8](repeating: 0, count: Int(DriverQueue.footprint)), at: Self.rings)
    var fresh = try setup.run()
    #expect(try setup.echo([7], &fresh) == [7])
  }

  @Test func resetForgetsTheDriver() throws {
    let setup = Setup()
    var queue = try setup.run(vector: 1)
    try setup.driver.setCommon(0x10, .word, 2)
    try setup.driver.setStatus(0)
    queue.submit([.readable(Self.data, 1), .writable(Self.data + 0x1000, 1)])
    let resets = setup.device.processed
    try setup.driver.notify(0)
    #expect(setup.device.processed == resets)
    #expect(queue.takeUsed() == [])
    #expect(try setup.driver.common(0x10, .word) == 0xffff)
    #expect(try setup.driver.common(0x1a, .word) == 0xffff)
    #expect(try setup.driver.common(0x1c, .word) == 0)
    #expect(try setup.driver.common(0x20, .quadword) == 0)
  }

  @Test func functionLevelResetIsAReset() throws {
    let setup = Setup()
    _ = try setup.run()
    var pointer = Int(setup.driver.config(0x34, .byte))
    while setup.driver.config(pointer, .byte) != 0x10 { pointer = Int(setup.driver.config(pointer + 1, .byte)) }
    setup.pci.function.writeConfiguration(offset: pointer + 8, width: .word, value: 1 << 15)
    #expect(setup.pci.status == [])
    #expect(setup.board.workers.workers.map(\.doorbell) == [nil, nil])
    #expect(setup.driver.config(0x20, .doubleword) == 0xc)
    setup.board.plug(setup.pci)
    var queue = try setup.run()
    #expect(try setup.echo([3], &queue) == [3])
  }

  @Test func oneQueueCanBeResetAlone() throws {
    let setup = Setup()
    var queue = try setup.run(1 << 32 | 1 << 40)
    #expect(try setup.echo([1], &queue) == [1])
    try setup.driver.setCommon(0x3a, .word, 1)
    #expect(try setup.driver.common(0x3a, .word) == 0)
    #expect(try setup.driver.common(0x1c, .word) == 0)
    queue.submit([.readable(Self.data, 1), .writable(Self.data + 0x1000, 1)])
    try setup.driver.notify(0)
    #expect(queue.takeUsed() == [])
    var fresh = try setup.driver.setUp(queue: 0, size: 8, at: Self.rings + DriverQueue.footprint)
    #expect(try setup.echo([2], &fresh) == [2])
  }

  @Test func queueResetNeedsItsFeature() throws {
    let setup = Setup()
    var queue = try setup.run(1 << 32)
    try setup.driver.setCommon(0x3a, .word, 1)
    #expect(try setup.echo([1], &queue) == [1])
  }

  @Test func withoutBusMasterNothingMovesAndNothingIsLost() throws {
    let setup = Setup()
    var queue = try setup.run()
    setup.driver.setBusMaster(false)
    queue.submit([.readable(Self.data, 1), .writable(Self.data + 0x1000, 1)])
    try setup.driver.notify(0)
    #expect(queue.takeUsed() == [])
    #expect(try setup.driver.status == 0xf)
    setup.driver.setBusMaster(true)
    #expect(queue.takeUsed().count == 1)
  }

  @Test func removalEndsTheWorkers() throws {
    let setup = Setup()
    _ = try setup.run()
    setup.pci.remove()
    #expect(setup.board.workers.workers.allSatisfy { $0.stopped && $0.doorbell == nil })
    #expect(setup.board.memoryBus.read(address: TestBoard.structuresBase, width: .byte) == nil)
  }

  @Test func aRemovedDeviceIsLetGo() throws {
    weak var released: VirtioPCI?
    do {
      let setup = Setup()
      _ = try setup.run()
      released = setup.pci
      setup.pci.remove()
    }
    #expect(released == nil)
  }

  // MARK: The window in configuration space

  @Test func theWindowReachesTheStructures() throws {
    let setup = Setup()
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
    // Nothing there: other BARs, odd lengths, askew or past the end. The data are then a register like any other.
    for (bar, offset, length): (UInt64, UInt64, UInt64) in [
      (1, 0, 4), (4, 0, 3), (4, 0, 8), (4, 0, 0), (4, 0x3ffe, 4), (4, 0x4000, 1), (4, 0xffff_ffff, 1),
    ] {
      aim(bar, offset, length)
      setup.pci.function.writeConfiguration(offset: data, width: .doubleword, value: 0x5a5a_0000)
      #expect(setup.driver.config(data, .doubleword) == 0x5a5a_0000)
    }
    #expect(setup.pci.status == [.acknowledge])
  }
}
