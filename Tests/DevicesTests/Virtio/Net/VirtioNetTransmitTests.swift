import Hardware
import TestSupport
import Testing

@testable import Devices

/// Tests the packets that a driver sends: virtio 1.2, 5.1.6.2.
@Suite struct VirtioNetTransmitTests {
  private static func segmented(_ type: UInt8) -> NetworkHeader {
    var header = NetworkHeader()
    header.flags = .needsChecksum
    header.checksumStart = 34
    header.checksumOffset = 16
    header.segmentation = type
    header.segmentSize = 1448
    header.headerLength = 54
    return header
  }

  @Test("a packet is sent with any framing", arguments: [[], [12], [5], [5, 7, 1, 13], [12, 14, 30]] as [[Int]])
  func packetsHaveAnyFraming(pieces: [Int]) throws {
    var net = try TestNetwork()
    let frame = TestNetwork.frame(payload: 300)
    #expect(try net.send(frame, pieces: pieces))
    #expect(net.backend.sent == [.init(frame: frame)])
    #expect(net.counters.sent.packets == 1)
    #expect(net.counters.sent.bytes == 314)
  }

  @Test("a packet in an indirect table is sent, and nothing is written")
  func indirectPacketsAreSent() throws {
    var net = try TestNetwork()
    let frame = TestNetwork.frame()
    net.board.memory.store([UInt8](repeating: 0, count: 12) + frame, at: TestNetwork.output)
    net.queues[1].submit(
      [.readable(TestNetwork.output, 12), .readable(TestNetwork.output + 12, frame.count)], indirectAt: 0x7_0000)
    try net.driver.notify(1)
    #expect(net.backend.sent.map(\.frame) == [frame])
    #expect(net.queues[1].takeUsed() == [.init(id: 0, length: 0)])
  }

  @Test("the header reaches the backend")
  func headerReachesTheBackend() throws {
    var net = try TestNetwork()
    let frame = TestNetwork.frame(payload: 60000)
    #expect(try net.send(frame, Self.segmented(1)))
    #expect(net.backend.sent == [.init(header: Self.segmented(1), frame: frame)])
  }

  @Test("an offload that was not negotiated is dropped")
  func offloadsMustBeNegotiated() throws {
    // HOST_TSO4 is missing, then CSUM as well.
    var net = try TestNetwork(without: [.netHostTSO4, .netHostECN])
    #expect(try net.send(TestNetwork.frame(payload: 4000), Self.segmented(1)))
    #expect(try net.send(TestNetwork.frame(payload: 4000), Self.segmented(4)))
    #expect(net.backend.sent.map(\.header) == [Self.segmented(4)])
    #expect(net.counters.sent.header == 1)
    try net.start(1 << 32)
    var header = Self.segmented(0)
    header.segmentSize = 0
    #expect(try net.send(TestNetwork.frame(), header))
    #expect(net.backend.sent.count == 1)
    #expect(net.counters.sent.header == 2)
  }

  @Test("frames are 14 to 65589 bytes")
  func framesHaveLimits() throws {
    var net = try TestNetwork()
    for size in [0, 13, 65590, 70000] {
      #expect(try net.send([UInt8](repeating: 1, count: size)))
    }
    #expect(net.backend.sent == [])
    #expect(net.counters.sent.size == 4)
    for size in [14, 65589] {
      #expect(try net.send([UInt8](repeating: 1, count: size)))
    }
    #expect(net.backend.sent.map(\.frame.count) == [14, 65589])
  }

  @Test("a frame has at most 1023 segments")
  func framesHaveFewSegments() throws {
    var net = try TestNetwork()
    // Buffers of two bytes that do not touch each other; the header is the first buffer.
    func send(_ count: Int) throws {
      var buffers = [DriverQueue.Buffer.readable(TestNetwork.output, 12)]
      for index in 0..<UInt64(count) { buffers.append(.readable(TestNetwork.buffers + 4 * index, 2)) }
      net.queues[1].submit(buffers, indirectAt: 0x6_0000)
      try net.driver.notify(1)
    }
    net.board.memory.store([UInt8](repeating: 0, count: 12), at: TestNetwork.output)
    try send(1023)
    #expect(net.backend.sent.map(\.frame.count) == [2046])
    // The header's buffer and 1023 others are the most that a chain has.
    try send(1024)
    #expect(net.backend.sent.count == 1)
    #expect(try net.driver.status == 0x4f)
  }

  @Test("a chain without a whole header asks for a reset")
  func shortChainsAskForAReset() throws {
    var net = try TestNetwork()
    net.queues[1].submit([.readable(TestNetwork.output, 11), .writable(TestNetwork.output, 100)])
    try net.driver.notify(1)
    #expect(try net.driver.status == 0x4f)
    #expect(net.backend.sent == [])
  }

  @Test("a packet that the backend drops is returned to the driver")
  func backendMayDrop() throws {
    var net = try TestNetwork()
    net.backend.refuse(true)
    #expect(try net.send(TestNetwork.frame()))
    #expect(net.counters.sent.backend == 1)
    #expect(net.counters.sent.packets == 0)
  }

  // MARK: Waiting for room

  @Test("packets wait for room, in order, and the backend's wake-up sends them", arguments: [true, false])
  func packetsWaitForRoom(hasEventIndex: Bool) throws {
    var net = try TestNetwork(without: hasEventIndex ? [] : .eventIndex)
    net.backend.setRoom(1)
    let frames = (0..<4).map { TestNetwork.frame(payload: 50 + $0) }
    for frame in frames[..<3] {
      net.queue(frame)
      // Each packet has memory of its own.
      let head = net.queues[1].availableIndex &- 1
      let own = TestNetwork.output + 0x1000 * UInt64(head + 1)
      net.board.memory.store(net.board.memory.copy(TestNetwork.output, count: frame.count + 12)!, at: own)
      net.queues[1].writeDescriptor(head, address: own, length: UInt32(frame.count + 12), flags: 0)
    }
    try net.driver.notify(1)
    #expect(net.backend.sent.map(\.frame) == Array(frames[..<1]))
    #expect(net.queues[1].takeUsed().map(\.id) == [0])
    // A notification does not help, and a wake-up only if there is room.
    net.queue(frames[3])
    try net.driver.notify(1)
    net.backend.wakeSender()
    #expect(net.backend.sent.count == 1)
    #expect(net.counters.sent.waits == 3)
    net.backend.setRoom(nil)
    net.backend.wakeSender()
    #expect(net.backend.sent.map(\.frame) == frames)
    #expect(net.queues[1].takeUsed().map(\.id) == [1, 2, 3])
    // Afterwards the driver's notification is enabled again.
    if hasEventIndex { #expect(net.queues[1].availableEvent == 4) } else { #expect(!net.queues[1].noNotify) }
  }

  @Test("a reset drops packets that wait for room")
  func resetDropsWaitingPackets() throws {
    var net = try TestNetwork()
    net.backend.setRoom(0)
    #expect(try !net.send(TestNetwork.frame()))
    try net.driver.setStatus(0)
    net.backend.setRoom(nil)
    net.backend.wakeSender()
    #expect(net.backend.sent == [])
    try net.start()
    #expect(try net.send(TestNetwork.frame(payload: 47)))
    #expect(net.backend.sent.map(\.frame) == [TestNetwork.frame(payload: 47)])
  }
}
