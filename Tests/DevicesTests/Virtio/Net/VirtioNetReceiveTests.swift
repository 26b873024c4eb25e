import Hardware
import TestSupport
import Testing

@testable import Devices

/// Tests the packets that a driver receives: virtio 1.2, 5.1.6.3 and 5.1.6.4.
@Suite struct VirtioNetReceiveTests {
  private static let header: [UInt8] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]

  @Test("a packet fills one buffer, with its header in front", arguments: [true, false])
  func packetFillsOneBuffer(merges: Bool) throws {
    var net = try TestNetwork(without: merges ? [] : .netMergeBuffers)
    try net.supply(2, size: 1526)
    let frame = TestNetwork.frame(payload: 1500)
    net.backend.deliver(frame)
    #expect(net.takeBuffers() == [Self.header + frame])
    #expect(net.counters.received.packets == 1)
    #expect(net.counters.received.bytes == 1514)
  }

  @Test("a packet may be split over the descriptors of a chain")
  func packetIsSplitOverDescriptors() throws {
    var net = try TestNetwork(without: .netMergeBuffers)
    let at = TestNetwork.buffers
    net.queues[0].submit([.writable(at, 3), .writable(at + 0x100, 20), .writable(at + 0x200, 2000)])
    let frame = TestNetwork.frame(payload: 600)
    net.backend.deliver(frame)
    #expect(net.queues[0].takeUsed() == [.init(id: 0, length: 626)])
    let memory = net.board.memory
    #expect(memory.copy(at, count: 3)! + memory.copy(at + 0x100, count: 20)! == Self.header + frame[..<11])
    #expect(memory.copy(at + 0x200, count: 603) == Array(frame[11...]))
  }

  // MARK: Merged buffers

  @Test("a large packet fills several buffers, which the driver sees together")
  func largePacketIsMerged() throws {
    var net = try TestNetwork(without: .eventIndex)
    net.driver.enableMSIX(vectors: 3)
    try net.supply(50, size: 1536)
    var header = NetworkHeader()
    header.flags = .needsChecksum
    header.segmentation = NetworkHeader.Segmentation.tcp4
    header.segmentSize = 1448
    let frame = TestNetwork.frame(payload: 65535)
    net.backend.deliver(frame, header)
    let buffers = net.takeBuffers()
    #expect(buffers.count == 43)
    #expect(buffers.dropLast().allSatisfy { $0.count == 1536 })
    header.bufferCount = 43
    let bytes = header.bytes
    #expect(buffers.flatMap { $0 } == (0..<12).map { bytes[$0] } + frame)
    #expect(net.driver.messages == [0x40])
    // The next packet has its own count.
    net.backend.deliver(TestNetwork.frame())
    #expect(net.takeBuffers() == [Self.header + TestNetwork.frame()])
  }

  @Test("the buffer count is found when the header is split over descriptors")
  func bufferCountOfASplitHeader() throws {
    var net = try TestNetwork()
    let at = TestNetwork.buffers
    net.queues[0].submit([.writable(at, 10), .writable(at + 0x100, 1), .writable(at + 0x200, 9)])
    net.queues[0].submit([.writable(at + 0x300, 100)])
    net.backend.deliver(TestNetwork.frame())
    #expect(net.queues[0].takeUsed() == [.init(id: 0, length: 20), .init(id: 3, length: 52)])
    #expect(net.board.memory.copy(at + 0x100, count: 1) == [2])
    #expect(net.board.memory.copy(at + 0x200, count: 3) == [0] + TestNetwork.address[..<2])
  }

  @Test("a packet waits for buffers, takes none before they suffice, and keeps its place")
  func packetWaitsForBuffers() throws {
    var net = try TestNetwork()
    let large = TestNetwork.frame(payload: 1000)
    net.backend.deliver(large)
    net.backend.deliver(TestNetwork.frame())
    #expect(net.backend.waiting == 1)
    try net.supply(1, size: 512)
    #expect(net.queues[0].takeUsed() == [])
    // The device asks for a notification of the second buffer, although it has put the first one back.
    #expect(net.queues[0].availableEvent == 1)
    try net.supply(3, size: 512)
    let buffers = net.takeBuffers()
    #expect(buffers.map(\.count) == [512, 512, 2, 72])
    #expect(Array(buffers[0][12...] + buffers[1] + buffers[2]) == large)
    #expect(buffers[0][10] == 3)
    #expect(Array(buffers[3][12...]) == TestNetwork.frame())
    #expect(net.counters.received.buffer == 0)
  }

  @Test("a packet that fills a whole queue is delivered; one that does not fit is dropped")
  func packetMustFitTheQueue() throws {
    var net = try TestNetwork()
    try net.driver.negotiate()
    // Queue 0 has only two descriptors.
    net.queues[0] = try net.driver.setUp(queue: 0, size: 2, at: 0x6_0000)
    try net.driver.start()
    let at = TestNetwork.buffers
    net.queues[0].submit([.writable(at, 40)])
    net.queues[0].submit([.writable(at + 0x100, 40)])
    net.backend.deliver(TestNetwork.frame(payload: 55))
    #expect(net.queues[0].takeUsed() == [])
    #expect(net.counters.received.buffer == 1)
    net.backend.deliver(TestNetwork.frame(payload: 54))
    #expect(net.queues[0].takeUsed().map(\.length) == [40, 40])
  }

  @Test("without merged buffers a packet that is too large is dropped, and its buffer serves the next one")
  func tooLargeIsDropped() throws {
    var net = try TestNetwork(without: .netMergeBuffers)
    try net.supply(1, size: 100)
    net.backend.deliver(TestNetwork.frame(payload: 75))
    #expect(net.takeBuffers() == [])
    net.backend.deliver(TestNetwork.frame(payload: 74))
    #expect(net.takeFrames() == [TestNetwork.frame(payload: 74)])
    #expect(net.counters.received.buffer == 1)
  }

  @Test("a buffer without room for a header asks for a reset", arguments: [true, false])
  func tinyBuffersAskForAReset(merges: Bool) throws {
    var net = try TestNetwork(without: merges ? [] : .netMergeBuffers)
    try net.supply(1, size: 11)
    net.backend.deliver(TestNetwork.frame())
    #expect(try net.driver.status == 0x4f)
    try net.start()
    net.queues[0].submit([.readable(TestNetwork.buffers, 2000)])
    net.backend.deliver(TestNetwork.frame())
    #expect(try net.driver.status == 0x4f)
  }

  // MARK: Wake-ups

  @Test("packets stay with the backend while the driver has no buffers")
  func packetsStayWithTheBackend() throws {
    var net = try TestNetwork()
    for index in 0..<5 { net.backend.deliver(TestNetwork.frame(payload: 50 + index)) }
    // The device has taken one.
    #expect(net.backend.waiting == 4)
    try net.supply(3, size: 2048)
    #expect(net.takeFrames() == (0..<3).map { TestNetwork.frame(payload: 50 + $0) })
    #expect(net.backend.waiting == 1)
    try net.supply(2, size: 2048)
    #expect(net.takeFrames() == (3..<5).map { TestNetwork.frame(payload: 50 + $0) })
  }

  @Test("notifications are off while buffers suffice, and on when they are used up")
  func notificationsFollowTheBuffers() throws {
    var net = try TestNetwork(without: .eventIndex)
    try net.supply(1, size: 2048)
    #expect(net.queues[0].noNotify)
    net.backend.deliver(TestNetwork.frame())
    #expect(net.queues[0].noNotify)
    net.backend.deliver(TestNetwork.frame())
    #expect(!net.queues[0].noNotify)
    try net.supply(1, size: 2048)
    #expect(net.takeFrames().count == 2)
  }

  @Test("one wake-up delivers all packets, and asks the backend once more")
  func oneWakeUpDeliversAll() throws {
    var net = try TestNetwork()
    try net.supply(10, size: 2048)
    let calls = net.backend.receiveCalls
    for _ in 0..<6 { net.backend.queue(TestNetwork.frame()) }
    net.backend.wakeReceiver()
    #expect(net.takeFrames().count == 6)
    #expect(net.backend.receiveCalls == calls + 7)
  }

  @Test("a reset drops the packet that waits for buffers")
  func resetDropsTheWaitingPacket() throws {
    var net = try TestNetwork()
    net.backend.deliver(TestNetwork.frame(payload: 50))
    try net.start()
    try net.supply(1, size: 2048)
    #expect(net.takeFrames() == [])
    net.backend.deliver(TestNetwork.frame(payload: 51))
    #expect(net.takeFrames() == [TestNetwork.frame(payload: 51)])
  }

  @Test("a wake-up before the driver has started loses no packet")
  func packetsBeforeTheStart() throws {
    var net = try TestNetwork()
    try net.driver.setStatus(0)
    net.backend.deliver(TestNetwork.frame())
    #expect(net.backend.waiting == 1)
    try net.start()
    try net.supply(1, size: 2048)
    #expect(net.takeFrames() == [TestNetwork.frame()])
  }

  // MARK: Checks

  @Test("packets with offloads that the driver did not accept are dropped")
  func unwantedOffloadsAreDropped() throws {
    var net = try TestNetwork(without: [.netGuestTSO4, .netGuestECN])
    try net.supply(4, size: 2048)
    var header = NetworkHeader()
    header.flags = .needsChecksum
    header.segmentation = NetworkHeader.Segmentation.tcp4
    header.segmentSize = 100
    net.backend.deliver(TestNetwork.frame(), header)
    header.segmentation = NetworkHeader.Segmentation.tcp6
    net.backend.deliver(TestNetwork.frame(), header)
    #expect(net.takeBuffers().map { $0[1] } == [4])
    #expect(net.counters.received.offload == 1)
  }

  @Test("packets have the size of an Ethernet frame")
  func packetsHaveTheSizeOfAFrame() throws {
    var net = try TestNetwork()
    try net.supply(60, size: 2048)
    net.backend.deliver([UInt8](repeating: 1, count: 13))
    net.backend.deliver([UInt8](repeating: 1, count: 65590))
    #expect(net.takeBuffers() == [])
    #expect(net.counters.received.size == 2)
    net.backend.deliver([UInt8](repeating: 1, count: 14))
    net.backend.deliver([UInt8](repeating: 1, count: 65589))
    #expect(net.counters.received.packets == 2)
  }

  @Test("packets obey the MTU that the driver negotiated", arguments: [true, false])
  func packetsObeyTheMTU(isNegotiated: Bool) throws {
    var parameters = VirtioNetParameters()
    parameters.mtu = 1000
    var net = try TestNetwork(parameters, without: isNegotiated ? [] : .netMTU)
    try net.supply(8, size: 2048)
    net.backend.deliver(TestNetwork.frame(payload: 1000))
    net.backend.deliver(TestNetwork.frame(payload: 1001))
    net.backend.deliver(TestNetwork.frame(vlan: 5, payload: 1000))
    net.backend.deliver(TestNetwork.frame(vlan: 5, payload: 1001))
    #expect(net.takeFrames().map(\.count) == (isNegotiated ? [1014, 1018] : [1014, 1015, 1018, 1019]))
    // A packet to be segmented may be larger.
    var header = NetworkHeader()
    header.flags = .needsChecksum
    header.segmentation = NetworkHeader.Segmentation.tcp4
    header.segmentSize = 900
    net.backend.deliver(TestNetwork.frame(payload: 1900), header)
    #expect(net.takeFrames().map(\.count) == [1914])
    #expect(net.counters.received.size == (isNegotiated ? 2 : 0))
  }
}
