import Devices
import Hardware
import PCI
import TestSupport
import Testing

/// Tests queues behind the PCI transport: service, interrupts, failures and resets.
@Suite struct VirtioPCIQueueTests {
  // MARK: Service

  @Test("a queue is served on notification")
  func servesAQueueOnNotification() throws {
    let setup = EchoSetup()
    var queue = try setup.run()
    #expect(try setup.echo([1, 2, 3, 4], &queue) == [1, 2, 3, 4])
    #expect(try setup.echo([5], &queue) == [5])
  }

  @Test("nothing is served before DRIVER_OK, and waiting chains are served then")
  func servesNothingBeforeDriverOKAndWhatWaitedThen() throws {
    let setup = EchoSetup()
    try setup.driver.negotiate()
    var queue = try setup.driver.setUp(queue: 0, at: EchoSetup.rings)
    queue.submit([.readable(EchoSetup.data, 4), .writable(EchoSetup.data + 0x1000, 4)])
    try setup.driver.notify(0)
    #expect(setup.device.processed == 0)
    #expect(queue.takeUsed() == [])
    try setup.driver.start()
    #expect(queue.takeUsed() == [.init(id: 0, length: 4)])
  }

  @Test("a notification's address selects its queue")
  func notificationsNameTheirQueueByAddress() throws {
    let setup = EchoSetup()
    _ = try setup.run()
    var second = try setup.driver.setUp(queue: 1, at: EchoSetup.rings + DriverQueue.footprint)
    second.submit([.readable(EchoSetup.data, 4), .writable(EchoSetup.data + 0x1000, 4)])
    try setup.driver.write(2, 0, .word, 1)
    #expect(second.takeUsed() == [])
    try setup.driver.write(2, 4, .doubleword, 0)
    #expect(second.takeUsed().count == 1)
    // These notifications are past the last queue, and misaligned.
    try setup.driver.write(2, 8, .word, 0)
    try setup.driver.write(2, 0xffe, .word, 0)
  }

  /// The BAR overlaps a chip of the board: writes there reach the chip.
  @Test func `a doorbell exists only where the bus gives the address to the BAR`() throws {
    final class Chip: BusDevice {
      func read(offset: UInt64, width: AccessWidth) -> UInt64 { 0xc }
      func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
    }
    let setup = EchoSetup()
    func doorbells() -> [UInt64?] { setup.board.workers.workers.map(\.doorbell) }
    let base = try #require(doorbells()[0])
    #expect(doorbells() == [base, base + 4])
    let chip = setup.board.memoryBus.attach(Chip(), at: base + 4, size: 0x20)
    #expect(doorbells() == [base, nil])
    setup.board.memoryBus.detach(chip)
    #expect(doorbells() == [base, base + 4])
    _ = setup.board.memoryBus.attach(Chip(), at: base & ~0xfff, size: 0x1000)
    #expect(doorbells() == [nil, nil])
  }

  @Test("doorbells move with the BAR")
  func doorbellsFollowTheBAR() throws {
    let setup = EchoSetup()
    let base = TestBoard.structuresBase + 0x3000
    #expect(setup.board.workers.workers.map(\.doorbell) == [base, base + 4])
    // Software turns decoding off to size the BAR, and turns it on at another address.
    setup.pci.function.writeConfiguration(offset: 4, width: .word, value: 0)
    #expect(setup.board.workers.workers.map(\.doorbell) == [nil, nil])
    setup.pci.function.writeConfiguration(offset: 0x20, width: .doubleword, value: 0xd000_0000)
    setup.pci.function.writeConfiguration(offset: 0x24, width: .doubleword, value: 0)
    setup.pci.function.writeConfiguration(offset: 4, width: .word, value: 2)
    #expect(setup.board.workers.workers.map(\.doorbell) == [0xd000_3000, 0xd000_3004])
    var queue = try setup.run()
    #expect(try setup.echo([9], &queue) == [9])
  }

  @Test("messages use the vectors of their queue and of the configuration")
  func messagesGoToTheirVectors() throws {
    let setup = EchoSetup()
    setup.driver.enableMSIX(vectors: 3)
    try setup.driver.negotiate(1 << 32)
    try setup.driver.setCommon(0x10, .word, 2)
    var queue = try setup.driver.setUp(queue: 0, at: EchoSetup.rings, vector: 1)
    try setup.driver.start()
    _ = try setup.echo([1], &queue)
    #expect(setup.driver.messages == [0x41])
    #expect(setup.board.router.deliveries.map(\.requester) == [RequesterID(bus: 0, device: 3, function: 0)])
    setup.device.transport?.configurationChanged()
    #expect(setup.driver.messages == [0x41, 0x42])
    #expect(!setup.board.line.asserted)
    // The ISR status shows the configuration change alone, and no wire stays asserted.
    #expect(setup.driver.config(0x06, .word)[bit: 3] == false)
    #expect(try setup.driver.read(3, 0, .byte) == 2)
    // Without a vector there is no message.
    try setup.driver.setCommon(0x16, .word, 0)
    try setup.driver.setCommon(0x1a, .word, 0xffff)
    _ = try setup.echo([1], &queue)
    #expect(setup.driver.messages == [0x41, 0x42])
  }

  @Test("without MSI-X the ISR status and the wire signal interrupts")
  func withoutMSIXTheStatusAndTheWireTell() throws {
    let setup = EchoSetup()
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

  @Test("the generation counts configuration changes")
  func theGenerationCountsConfigurationChanges() throws {
    let setup = EchoSetup()
    let before = try setup.driver.common(0x15, .byte)
    setup.device.transport?.configurationChanged()
    #expect(try setup.driver.common(0x15, .byte) == before + 1)
    // Without a driver there is no interrupt.
    #expect(!setup.board.line.asserted)
  }

  @Test("the device configuration can be read and written up to its end")
  func deviceConfigurationIsTheDevices() throws {
    let driver = EchoSetup().driver
    #expect(try driver.read(4, 2, .doubleword) == 0x0504_0302)
    try driver.write(4, 6, .word, 0xaabb)
    #expect(try driver.read(4, 0, .quadword) == 0xaabb_0504_0302_0100)
    // Past its end: zero, and no write.
    try driver.write(4, 7, .word, 0x1111)
    #expect(try driver.read(4, 7, .word) == 0xaa)
    #expect(try driver.read(4, 0xffc, .doubleword) == 0)
  }

  @Test("a device can wake its queue")
  func wakesAQueueForItsDevice() throws {
    let setup = EchoSetup()
    var queue = try setup.run()
    queue.submit([.readable(EchoSetup.data, 1), .writable(EchoSetup.data + 0x1000, 1)])
    setup.device.transport?.wake(queue: 0)
    #expect(queue.takeUsed().count == 1)
    setup.device.transport?.wake(queue: 7)
  }

  // MARK: Failure and reset

  @Test("a malformed ring stops the device, which asks for a reset once")
  func malformedRingsAskForAReset() throws {
    let setup = EchoSetup()
    setup.driver.enableMSIX(vectors: 3)
    try setup.driver.negotiate(1 << 32)
    try setup.driver.setCommon(0x10, .word, 0)
    var queue = try setup.driver.setUp(queue: 0, at: EchoSetup.rings, vector: 1)
    var second = try setup.driver.setUp(queue: 1, at: EchoSetup.rings + DriverQueue.footprint, vector: 2)
    try setup.driver.start()
    queue.offer(0x4000)
    try setup.driver.notify(0)
    #expect(try setup.driver.status == 0x4f)
    #expect(setup.driver.messages == [0x40])
    // The other queue has stopped, too, and the request for a reset is not repeated.
    second.submit([.readable(EchoSetup.data, 1), .writable(EchoSetup.data + 0x1000, 1)])
    try setup.driver.notify(1)
    try setup.driver.notify(0)
    #expect(second.takeUsed() == [])
    #expect(setup.driver.messages == [0x40])
    // After a reset, the device works again.
    setup.board.memory.store([UInt8](repeating: 0, count: Int(DriverQueue.footprint)), at: EchoSetup.rings)
    var fresh = try setup.run()
    #expect(try setup.echo([7], &fresh) == [7])
  }

  @Test("a reset clears what the driver has set")
  func resetForgetsTheDriver() throws {
    let setup = EchoSetup()
    var queue = try setup.run(vector: 1)
    try setup.driver.setCommon(0x10, .word, 2)
    try setup.driver.setStatus(0)
    queue.submit([.readable(EchoSetup.data, 1), .writable(EchoSetup.data + 0x1000, 1)])
    let resets = setup.device.processed
    try setup.driver.notify(0)
    #expect(setup.device.processed == resets)
    #expect(queue.takeUsed() == [])
    #expect(try setup.driver.common(0x10, .word) == 0xffff)
    #expect(try setup.driver.common(0x1a, .word) == 0xffff)
    #expect(try setup.driver.common(0x1c, .word) == 0)
    #expect(try setup.driver.common(0x20, .quadword) == 0)
  }

  @Test("a function-level reset resets the device")
  func functionLevelResetIsAReset() throws {
    let setup = EchoSetup()
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

  @Test("a single queue can be reset")
  func oneQueueCanBeResetAlone() throws {
    let setup = EchoSetup()
    var queue = try setup.run(1 << 32 | 1 << 40)
    #expect(try setup.echo([1], &queue) == [1])
    try setup.driver.setCommon(0x3a, .word, 1)
    #expect(try setup.driver.common(0x3a, .word) == 0)
    #expect(try setup.driver.common(0x1c, .word) == 0)
    queue.submit([.readable(EchoSetup.data, 1), .writable(EchoSetup.data + 0x1000, 1)])
    try setup.driver.notify(0)
    #expect(queue.takeUsed() == [])
    var fresh = try setup.driver.setUp(queue: 0, size: 8, at: EchoSetup.rings + DriverQueue.footprint)
    #expect(try setup.echo([2], &fresh) == [2])
  }

  @Test("a queue reset needs its feature")
  func queueResetNeedsItsFeature() throws {
    let setup = EchoSetup()
    var queue = try setup.run(1 << 32)
    try setup.driver.setCommon(0x3a, .word, 1)
    #expect(try setup.echo([1], &queue) == [1])
  }

  @Test("without bus mastering a request waits, and the device serves it when bus mastering is on")
  func withoutBusMasterNothingMovesAndNothingIsLost() throws {
    let setup = EchoSetup()
    var queue = try setup.run()
    setup.driver.setBusMaster(false)
    queue.submit([.readable(EchoSetup.data, 1), .writable(EchoSetup.data + 0x1000, 1)])
    try setup.driver.notify(0)
    #expect(queue.takeUsed() == [])
    #expect(try setup.driver.status == 0xf)
    setup.driver.setBusMaster(true)
    #expect(queue.takeUsed().count == 1)
  }

  @Test("a removal ends the workers")
  func removalEndsTheWorkers() throws {
    let setup = EchoSetup()
    _ = try setup.run()
    setup.pci.function.revoke()
    #expect(setup.board.workers.workers.allSatisfy { $0.stopped && $0.doorbell == nil })
    #expect(setup.board.memoryBus.read(address: TestBoard.structuresBase, width: .byte) == nil)
  }

  @Test("a removed device is released")
  func aRemovedDeviceIsLetGo() throws {
    weak var released: VirtioPCI?
    do {
      let setup = EchoSetup()
      _ = try setup.run()
      released = setup.pci
      setup.pci.function.revoke()
    }
    #expect(released == nil)
  }

  // MARK: Hostile drivers

  /// Sends random accesses to all registers, in any order, width and alignment. Afterwards a correct driver is served.
  @Test("random accesses never trap", arguments: 0..<8)
  func randomAccessesNeverTrap(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    let setup = EchoSetup()
    var started = 0
    for _ in 0..<4000 {
      let width = AccessWidth.allCases.randomElement(using: &generator)!
      var value = UInt64.random(in: .min ... .max, using: &generator) & width.allOnes
      // Mostly accesses the first bytes of a page, where the registers are, with small values, which have a meaning.
      if Bool.random(using: &generator) { value &= 0xf }
      var offset = UInt64.random(in: 0..<4, using: &generator) << 12
      offset += UInt64.random(in: 0..<(Bool.random(using: &generator) ? 0x40 : 0xff9), using: &generator)
      switch UInt8.random(in: 0..<8, using: &generator) {
      case 0..<4: setup.pci.writeRegion(bar: 4, offset: offset, width: width, value: value)
      case 4, 5: _ = setup.pci.readRegion(bar: 4, offset: offset, width: width)
      case 6:
        let register = Int.random(in: 0..<0x100 - 8, using: &generator)
        setup.pci.function.writeConfiguration(offset: register, width: width, value: value)
      default: _ = setup.driver.config(Int.random(in: 0..<0x1000 - 8, using: &generator), width)
      }
      if setup.pci.status.contains(.driverOK) { started += 1 }
      // Random accesses alone would rarely complete the negotiation.
      if UInt8.random(in: 0..<200, using: &generator) == 0 {
        setup.board.plug(setup.pci)
        try setup.driver.negotiate()
        try setup.driver.start()
      }
    }
    #expect(started > 0)
    setup.board.plug(setup.pci)
    try setup.driver.setStatus(0)
    setup.board.memory.store([UInt8](repeating: 0, count: Int(DriverQueue.footprint)), at: EchoSetup.rings)
    var queue = try setup.run()
    #expect(try setup.echo([1, 2, 3], &queue) == [1, 2, 3])
  }
}
