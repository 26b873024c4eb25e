import Glibc
import Hardware
import PCI
import Synchronization
import TestSupport
import Testing

@testable import Devices

/// Tests a network device whose memory is translated, refused or random.
@Suite struct VirtioNetMemoryTests {
  private static let shift: UInt64 = 0x7_0000_0000

  private func translated(without: VirtioFeatures = []) throws -> (PageRemapper, TestNetwork) {
    let remapper = PageRemapper(memory: HeapMemory(size: 4 << 20))
    remapper.map(Self.shift, to: 0, count: 4 << 20)
    var parameters = VirtioNetParameters()
    parameters.transport.iommuPlatform = true
    let net = try TestNetwork(parameters, without: without, remapper: remapper, offset: Self.shift)
    return (remapper, net)
  }

  @Test("rings, packets, buffers and commands are translated")
  func everythingIsTranslated() throws {
    var (remapper, net) = try translated()
    // Two pages lie in reverse order in memory.
    let page = TestNetwork.output + 0x1000
    remapper.map(Self.shift + page, to: page + 0x1000, count: 4096)
    remapper.map(Self.shift + page + 0x1000, to: page, count: 4096)
    let frame = TestNetwork.frame(payload: 9000)
    #expect(try net.send(frame))
    // The device reads the packet's second page from the third page of memory, and its third page from the second.
    let packet = [UInt8](repeating: 0, count: 12) + frame
    let stored = packet + [UInt8](repeating: 0, count: 0x3000 - packet.count)
    let seen = Array(stored[..<0x1000]) + Array(stored[0x2000...]) + Array(stored[0x1000..<0x2000])
    #expect(net.backend.sent[0].frame == Array(seen[12..<packet.count]))
    try net.supply(8, size: 1536)
    net.backend.deliver(frame)
    #expect(net.takeBuffers().flatMap { $0 }.dropFirst(12) == frame[...])
    #expect(try net.control([0, 0, 0]) == 0)
    #expect(remapper.refused == [])
  }

  @Test("without iommu_platform addresses are physical")
  func withoutIOMMUPlatformAddressesArePhysical() throws {
    let remapper = PageRemapper(memory: HeapMemory(size: 4 << 20))
    var net = try TestNetwork(remapper: remapper)
    #expect(try net.send(TestNetwork.frame()))
    try net.supply(1, size: 2048)
    net.backend.deliver(TestNetwork.frame())
    #expect(net.takeFrames() == [TestNetwork.frame()])
    #expect(remapper.refused == [])
  }

  @Test("a packet to send that is refused never reaches the backend")
  func refusedPacketsAreNotSent() throws {
    var (remapper, net) = try translated()
    // The second page of the frame, then the header.
    remapper.unmap(Self.shift + TestNetwork.output + 0x1000)
    #expect(try net.send(TestNetwork.frame(payload: 8000)))
    remapper.unmap(Self.shift + TestNetwork.output)
    #expect(try net.send(TestNetwork.frame()))
    #expect(net.backend.sent == [])
    #expect(net.counters.sent.memory == 2)
    #expect(remapper.refused == [0x1000, 0].map { Self.shift + TestNetwork.output + $0 })
    #expect(try net.driver.status == 0xf)
  }

  @Test("a packet for refused buffers is dropped, and the driver gets them back empty", arguments: [true, false])
  func refusedBuffersComeBackEmpty(merges: Bool) throws {
    var (remapper, net) = try translated(without: merges ? [] : .netMergeBuffers)
    // The third buffer of 4 KiB is refused.
    remapper.unmap(Self.shift + TestNetwork.buffers + 0x2000)
    try net.supply(6, size: 0x1000)
    if merges {
      net.backend.deliver(TestNetwork.frame(payload: 10000))
    } else {
      for _ in 0..<3 { net.backend.deliver(TestNetwork.frame()) }
    }
    let counts = net.takeBuffers().map(\.count)
    #expect(counts == (merges ? [0, 0, 0] : [72, 72, 0]))
    #expect(net.counters.received.memory == 1)
    #expect(remapper.refused == [Self.shift + TestNetwork.buffers + 0x2000])
    net.backend.deliver(TestNetwork.frame(payload: 60))
    #expect(net.takeFrames() == [TestNetwork.frame(payload: 60)])
    #expect(try net.driver.status == 0xf)
  }

  @Test("a frame in more segments than the backend takes is dropped")
  func tooManySegmentsAreDropped() throws {
    var (remapper, net) = try translated()
    // Pages that are not adjacent in memory, so that a buffer across two of them is two segments.
    let window = Self.shift + 0x1000_0000
    for page in 0..<UInt64(1040) { remapper.map(window + page << 12, to: 0x10_0000 + (page % 2) << 13, count: 4096) }
    func send(_ buffers: Int) throws {
      var list = [DriverQueue.Buffer.readable(Self.shift + TestNetwork.output, 12)]
      for index in 0..<UInt64(buffers) { list.append(.readable(window + index << 13 + 4094, 4)) }
      net.queues[1].submit(list, indirectAt: 0x6_0000, deviceAddress: Self.shift + 0x6_0000)
      try net.driver.notify(1)
    }
    net.board.memory.store([UInt8](repeating: 0, count: 12), at: TestNetwork.output)
    try send(511)
    #expect(net.backend.sent.map(\.frame.count) == [2044])
    try send(512)
    try send(513)
    #expect(net.backend.sent.count == 1)
    #expect(net.queues[1].takeUsed().count == 3)
    #expect(net.counters.sent.size == 2)
  }

  @Test("without bus mastering nothing moves and nothing is lost")
  func withoutBusMasterNothingIsLost() throws {
    var net = try TestNetwork()
    try net.supply(1, size: 2048)
    net.driver.setBusMaster(false)
    net.queue(TestNetwork.frame(payload: 50))
    try net.driver.notify(1)
    net.backend.deliver(TestNetwork.frame(payload: 51))
    #expect(net.backend.sent == [])
    #expect(net.takeFrames() == [])
    net.driver.setBusMaster(true)
    #expect(net.backend.sent.map(\.frame) == [TestNetwork.frame(payload: 50)])
    #expect(net.takeFrames() == [TestNetwork.frame(payload: 51)])
    #expect(try net.driver.status == 0xf)
  }

  @Test("a packet or command that loses bus mastering half way is kept")
  func interruptedPacketsAreKept() throws {
    let (remapper, started) = try translated()
    var net = started
    let requester = net.pci.function.requester
    func stop(at address: UInt64) {
      remapper.atNextUse(of: Self.shift + address) { requester.busMasterEnable = false }
    }
    // The third of three merged buffers.
    try net.supply(3, size: 1024)
    stop(at: TestNetwork.buffers + 2048)
    let frame = TestNetwork.frame(payload: 2500)
    net.backend.deliver(frame)
    #expect(!requester.busMasterEnable)
    #expect(net.queues[0].takeUsed() == [])
    net.driver.setBusMaster(true)
    let buffers = net.takeBuffers()
    #expect(buffers.map(\.count) == [1024, 1024, 478])
    #expect(buffers.flatMap { $0 }.dropFirst(12) == frame[...])
    // The descriptor of the second of three.
    try net.supply(3, size: 1024)
    stop(at: net.queues[0].table + 16 * 4)
    net.backend.deliver(frame)
    #expect(net.queues[0].takeUsed() == [])
    net.driver.setBusMaster(true)
    #expect(net.takeBuffers().map(\.count) == [1024, 1024, 478])
    // The frame of a packet to send, after its header.
    stop(at: TestNetwork.output + 12)
    #expect(try !net.send(TestNetwork.frame()))
    #expect(net.backend.sent == [])
    net.driver.setBusMaster(true)
    #expect(net.backend.sent.map(\.frame) == [TestNetwork.frame()])
    #expect(net.queues[1].takeUsed().count == 1)
    // The bytes of a command.
    stop(at: TestNetwork.output)
    #expect(try net.control([1, 1, 2, 0, 0, 0, 0, 9]) == nil)
    net.driver.setBusMaster(true)
    #expect(net.net.address == MACAddress(rawValue: 0x0200_0000_0009))
    #expect(net.queues[2].takeUsed().map(\.length) == [1])
    #expect(try net.driver.status == 0xf)
  }

  @Test("a request stays in flight until the backend has the packet")
  func requestStaysInFlight() throws {
    var (remapper, net) = try translated()
    let port = try #require(remapper.ports.first)
    let isDrained = Shared(false)
    let wasDrained = Shared(false)
    let drain = Mutex<TestThread?>(nil)
    net.backend.onSend {
      drain.withLock {
        $0 = TestThread {
          port.inFlight.drain(parking: SemaphoreParking())
          isDrained.value = true
        }
      }
      usleep(20_000)
      wasDrained.value = isDrained.value
    }
    #expect(try net.send(TestNetwork.frame()))
    #expect(!wasDrained.value)
    drain.withLock { $0 }?.join()
    #expect(isDrained.value)
  }

  /// Serves random rings, headers and commands on all queues: nothing traps, and the device works after each reset.
  @Test("random memory never traps", arguments: 0..<12)
  func randomMemoryNeverTraps(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    var parameters = VirtioNetParameters()
    parameters[.netMultiqueue] = true
    var capabilities = RecordingNetwork.everything
    capabilities.pairs = 2
    var net = try TestNetwork(parameters, capabilities: capabilities)
    let offered = try net.driver.offered()
    var completed = 0
    for round in 0..<40 {
      // Every other round has neither event index nor offloads.
      try net.start(round % 2 == 0 ? offered : 1 << 32 | 1 << 15 | 0x7f_0000)
      for index in net.queues.indices { randomize(&net, queue: index, &generator) }
      for index in net.queues.indices.shuffled(using: &generator) {
        try net.driver.notify(UInt16(index))
        var header = NetworkHeader()
        header.flags = NetworkHeader.Flags(rawValue: UInt8.random(in: 0..<4, using: &generator))
        net.backend.deliver(
          [UInt8](repeating: 1, count: Int.random(in: 1..<4000, using: &generator)), header,
          pair: Int.random(in: 0..<2, using: &generator))
      }
      for index in net.queues.indices { completed += net.queues[index].takeUsed().count }
    }
    #expect(completed > 40)
    try net.start()
    let sent = net.backend.sent.count
    #expect(try net.send(TestNetwork.frame()))
    #expect(net.backend.sent.count == sent + 1)
    #expect(try net.control([0, 0, 1]) == 0)
  }

  /// Makes one good chain available on a queue, and then random ones.
  private func randomize(_ net: inout TestNetwork, queue index: Int, _ generator: inout SeededGenerator) {
    let memory = net.board.memory
    let control = net.queues.count - 1
    // A receive queue mostly has buffers to write.
    let writes: UInt16 = index % 2 == 0 && index < control ? 2 : 0
    for slot in 0..<UInt16(14) {
      let data = 0x8_0000 + UInt64.random(in: 0..<0x1_0000, using: &generator)
      memory.store((0..<24).map { _ in UInt8.random(in: 0..<7, using: &generator) }, at: data)
      let anywhere = UInt64.random(in: 0..<0x50_0000, using: &generator)
      let chained = writes | UInt16.random(in: 0..<2, using: &generator)
      let any = UInt16.random(in: 0..<8, using: &generator)
      net.queues[index].writeDescriptor(
        slot, address: Bool.random(using: &generator) ? data : anywhere,
        length: [2, 3, 12, 13, 60, 1500, 70000].randomElement(using: &generator)!,
        flags: any < 2 ? any : chained, next: UInt16.random(in: 0..<17, using: &generator))
    }
    memory.store([UInt8](repeating: 0, count: 100) + [0, 0, 1], at: 0x7_0000)
    if index == control {
      net.queues[index].writeDescriptor(14, address: 0x7_0000 + 100, length: 3, flags: 1, next: 15)
      net.queues[index].writeDescriptor(15, address: 0x7_1000, length: 1, flags: 2)
    } else {
      net.queues[index].writeDescriptor(14, address: writes > 0 ? 0x7_2000 : 0x7_0000, length: 100, flags: writes)
    }
    net.queues[index].offer(14)
    for _ in 0..<6 { net.queues[index].offer(UInt16.random(in: 0..<16, using: &generator)) }
  }

  @Test("many resets under traffic leave a working device")
  func manyResetsUnderTraffic() throws {
    var net = try TestNetwork(workers: ThreadedWorkerSource())
    let backend = net.backend
    let ends = Shared(false)
    let traffic = TestThread {
      while !ends.value {
        if backend.waiting < 20 { backend.deliver(TestNetwork.frame(payload: 2000)) }
        backend.wakeSender()
        usleep(20)
      }
    }
    for round in 0..<60 {
      try net.start()
      try net.supply(8, size: 1024)
      backend.setRoom(round % 2)
      _ = try net.send(TestNetwork.frame())
      if round % 3 == 0 {
        var received = 0
        #expect(
          eventually {
            received += net.takeBuffers().count
            return received >= 6
          })
      }
      net.net.setLink(up: round % 5 != 0)
      net.net.setLink(up: true)
    }
    ends.value = true
    traffic.join()
    #expect(try net.driver.status == 0xf)
    net.pci.function.revoke()
  }
}
