import Devices
import Hardware
import PCI
import TestSupport
import Testing

/// Tests the handover of queues to a datapath: start, notifiers, stop, and what the driver sees meanwhile.
@Suite struct QueueDatapathTests {
  private let datapath = RecordingDatapath()

  /// Returns a device whose queue 0 the datapath serves.
  private func make(events: Bool = false, _ options: VirtioOptions = VirtioOptions()) -> EchoSetup {
    let board = TestBoard()
    let device = EchoDevice(datapath: datapath)
    return EchoSetup(options, board: board, device: device, router: events ? EventRouter() : nil)
  }

  /// The queue's own call notifier, which its worker waits for.
  private static let own: Int32 = 2000

  private func worker(_ setup: EchoSetup) -> InlineWorker { setup.board.workers.workers[0] }

  private func setMSIX(_ setup: EchoSetup, _ isOn: Bool) {
    var pointer = Int(setup.driver.config(0x34, .byte))
    while setup.driver.config(pointer, .byte) != 0x11 { pointer = Int(setup.driver.config(pointer + 1, .byte)) }
    setup.pci.function.writeConfiguration(offset: pointer + 2, width: .word, value: isOn ? 0x8000 : 0)
  }

  // MARK: Start

  @Test func `at DRIVER_OK the datapath receives its queue, and the device serves the others`() throws {
    let setup = make()
    try setup.driver.negotiate()
    let ring = try setup.driver.setUp(queue: 0, at: EchoSetup.rings)
    var second = try setup.driver.setUp(queue: 1, at: EchoSetup.rings + DriverQueue.footprint)
    second.submit([.readable(EchoSetup.data, 4), .writable(EchoSetup.data + 0x1000, 4)])
    #expect(datapath.calls == [])
    try setup.driver.start()
    #expect(datapath.calls == [.start(at: 0, call: Self.own)])
    let queue = try #require(datapath.queue)
    #expect(queue.index == 0 && queue.layout == ring.layout() && !queue.usesTranslation)
    #expect(queue.features == setup.device.started.last)
    #expect(queue.kick.descriptor == 1000)
    #expect(second.takeUsed().count == 1)
    // For chains that were available before.
    #expect(worker(setup).kicks >= 1)
    let kicks = worker(setup).kicks
    try setup.driver.notify(0)
    #expect(worker(setup).kicks == kicks + 1)
    #expect(setup.device.processed == 1, "only queue 1, at DRIVER_OK")
  }

  @Test func `with iommu_platform the datapath must translate`() throws {
    var options = VirtioOptions()
    options.iommuPlatform = true
    let setup = make(options)
    _ = try setup.run()
    #expect(datapath.queue?.usesTranslation == true)
  }

  @Test func `a queue that the datapath declines is served by the device`() throws {
    datapath.refuse(.local)
    let setup = make()
    var queue = try setup.run()
    #expect(!worker(setup).isLent)
    #expect(try setup.echo([1, 2], &queue) == [1, 2])
  }

  @Test func `a datapath that cannot start costs the device a reset`() throws {
    datapath.refuse(.failed)
    let setup = make()
    _ = try setup.run()
    #expect(try setup.driver.status & 0x40 != 0)
    #expect(setup.board.line.asserted)
    datapath.refuse(nil)
    _ = try setup.run()
    #expect(try setup.driver.status == 0xf)
  }

  @Test func `a failure that the datapath reports ends the session, and not the next one`() throws {
    let setup = make()
    _ = try setup.run()
    let former = try #require(datapath.queue)
    former.fail()
    #expect(try setup.driver.status & 0x40 != 0)
    #expect(datapath.calls.last == .stop)
    _ = try setup.run()
    former.fail()
    #expect(try setup.driver.status == 0xf)
  }

  // MARK: Interrupts

  @Test func `without MSI-X, the datapath's call sets the ISR and asserts INTx`() throws {
    let setup = make(events: true)
    _ = try setup.run(vector: 0)
    #expect(!setup.board.line.asserted)
    worker(setup).call()
    #expect(setup.board.line.asserted)
    #expect(try setup.driver.read(3, 0, .byte) == 1)
    #expect(!setup.board.line.asserted)
  }

  @Test func `the call notifier follows the queue's vector and MSI-X Enable`() throws {
    let setup = make(events: true)
    setup.driver.enableMSIX(vectors: 3)
    try setup.driver.negotiate()
    _ = try setup.driver.setUp(queue: 0, at: EchoSetup.rings, vector: 1)
    try setup.driver.start()
    #expect(datapath.calls == [.start(at: 0, call: 501)])
    datapath.clear()
    func setVector(_ vector: UInt64) throws {
      try setup.driver.setCommon(0x16, .word, 0)
      try setup.driver.setCommon(0x1a, .word, vector)
    }
    try setVector(2)
    try setVector(2)
    try setVector(0xffff)
    try setVector(0)
    setMSIX(setup, false)
    setMSIX(setup, true)
    #expect(datapath.calls == [.setCall(502), .setCall(nil), .setCall(500), .setCall(Self.own), .setCall(500)])
  }

  @Test func `without eventfds of the host, the datapath's call sends the vector's message or sets its pending bit`()
    throws
  {
    let setup = make()
    setup.driver.enableMSIX(vectors: 3)
    try setup.driver.negotiate()
    _ = try setup.driver.setUp(queue: 0, at: EchoSetup.rings, vector: 1)
    try setup.driver.start()
    #expect(datapath.calls == [.start(at: 0, call: Self.own)])
    worker(setup).call()
    #expect(setup.driver.messages == [0x41])
    setup.board.memoryBus.write(address: TestBoard.tableBase + 16 + 12, width: .doubleword, value: 1)
    worker(setup).call()
    #expect(setup.driver.messages == [0x41])
    #expect(setup.board.memoryBus.read(address: TestBoard.tableBase + 0x800, width: .byte) == 0b010)
  }

  // MARK: Stop

  @Test func `a reset of the queue, the device or the function stops the datapath, and the next start is at zero`()
    throws
  {
    datapath.answerStops(.stopped(7))
    let setup = make()
    _ = try setup.run()
    try setup.driver.setCommon(0x16, .word, 0)
    try setup.driver.setCommon(0x3a, .word, 1)
    #expect(datapath.calls == [.start(at: 0, call: Self.own), .stop])
    #expect(!worker(setup).isLent)
    #expect(try setup.driver.common(0x3a, .word) == 0)
    _ = try setup.driver.setUp(queue: 0, at: EchoSetup.rings)
    #expect(datapath.calls.last == .start(at: 0, call: Self.own))
    datapath.clear()
    try setup.driver.setStatus(0)
    #expect(datapath.calls == [.stop])
    #expect(try setup.driver.status == 0)
    _ = try setup.run()
    datapath.clear()
    setup.pci.function.reset()
    #expect(datapath.calls == [.stop])
    // A late call of a server that has stopped interrupts nobody.
    worker(setup).call()
    #expect(!setup.board.line.asserted)
  }

  @Test func `while Bus Master Enable is clear, the datapath is stopped, and it continues at the same index`() throws {
    datapath.answerStops(.stopped(7))
    let setup = make()
    _ = try setup.run()
    datapath.clear()
    setup.driver.setBusMaster(false)
    setup.driver.setBusMaster(false)
    #expect(datapath.calls == [.stop])
    let kicks = worker(setup).kicks
    setup.driver.setBusMaster(true)
    #expect(datapath.calls == [.stop, .start(at: 7, call: Self.own)])
    #expect(worker(setup).kicks > kicks)
    #expect(try setup.driver.status == 0xf)
  }

  @Test func `a queue that starts while Bus Master Enable is clear is handed over when it is set`() throws {
    let setup = make()
    try setup.driver.negotiate()
    _ = try setup.driver.setUp(queue: 0, at: EchoSetup.rings)
    setup.driver.setBusMaster(false)
    try setup.driver.start()
    #expect(datapath.calls == [])
    setup.driver.setBusMaster(true)
    #expect(datapath.calls == [.start(at: 0, call: Self.own)])
  }

  @Test func `a datapath that does not know its index cannot continue`() throws {
    datapath.answerStops(.stopped(nil))
    let setup = make()
    _ = try setup.run()
    setup.driver.setBusMaster(false)
    #expect(try setup.driver.status & 0x40 != 0)
    setup.driver.setBusMaster(true)
    #expect(datapath.calls.last == .stop)
  }

  @Test func `unplugging stops the datapath`() throws {
    let setup = make()
    _ = try setup.run()
    setup.pci.function.revoke()
    #expect(datapath.calls == [.start(at: 0, call: Self.own), .stop])
  }

  // MARK: A datapath that takes time to stop

  @Test func `the driver reads that a reset of the device is in progress until the datapath has stopped`() throws {
    datapath.answerStops(.pending)
    let setup = make()
    _ = try setup.run()
    try setup.driver.setStatus(0)
    #expect(try setup.driver.status != 0)
    // A second reset changes nothing.
    try setup.driver.setStatus(0)
    #expect(try setup.driver.status != 0)
    #expect(worker(setup).isLent)
    datapath.complete(at: 3)
    #expect(try setup.driver.status == 0)
    #expect(!worker(setup).isLent)
    datapath.clear()
    _ = try setup.run()
    #expect(datapath.calls == [.start(at: 0, call: Self.own)])
  }

  @Test func `queue_reset reads 1 until the datapath has stopped, and an early start waits for that`() throws {
    datapath.answerStops(.pending)
    let setup = make()
    _ = try setup.run()
    try setup.driver.setCommon(0x16, .word, 0)
    try setup.driver.setCommon(0x3a, .word, 1)
    #expect(try setup.driver.common(0x3a, .word) == 1)
    datapath.clear()
    _ = try setup.driver.setUp(queue: 0, at: EchoSetup.rings)
    #expect(datapath.calls == [])
    datapath.complete(at: 3)
    #expect(datapath.calls == [.start(at: 0, call: Self.own)])
    #expect(try setup.driver.common(0x3a, .word) == 0)
  }

  @Test func `Bus Master Enable that is set again before the datapath has stopped restarts it afterwards`() throws {
    datapath.answerStops(.pending)
    let setup = make()
    _ = try setup.run()
    datapath.clear()
    setup.driver.setBusMaster(false)
    setup.driver.setBusMaster(true)
    #expect(datapath.calls == [.stop])
    datapath.complete(at: 9)
    #expect(datapath.calls == [.stop, .start(at: 9, call: Self.own)])
  }

  @Test func `a stop that completes after the driver's reset restarts nothing`() throws {
    datapath.answerStops(.pending)
    let setup = make()
    _ = try setup.run()
    setup.driver.setBusMaster(false)
    try setup.driver.setStatus(0)
    datapath.clear()
    setup.driver.setBusMaster(true)
    datapath.complete(at: 9)
    #expect(datapath.calls == [])
    #expect(try setup.driver.status == 0)
  }

  @Test func `a datapath that never stops does not delay the unplugging of its device`() throws {
    datapath.answerStops(.pending)
    let setup = make()
    _ = try setup.run()
    setup.pci.function.revoke()
    datapath.complete(at: nil)
    #expect(datapath.calls == [.start(at: 0, call: Self.own), .stop])
  }
}
