import Hardware
import TestSupport
import Testing

@testable import Devices

/// Tests the control queue: virtio 1.2, 5.1.6.5.
@Suite struct VirtioNetControlTests {
  private static let other: [UInt8] = [0x52, 0x54, 0, 9, 9, 9]
  private static let group: [UInt8] = [0x01, 0, 0x5e, 0, 0, 1]
  private static let everyone = [UInt8](repeating: 0xff, count: 6)

  private static func multiqueue(_ pairs: Int = 4, without: VirtioFeatures = []) throws -> TestNetwork {
    var parameters = VirtioNetParameters()
    parameters[.netMultiqueue] = true
    return try TestNetwork(parameters, capabilities: NetworkCapabilities(pairs: pairs), without: without)
  }

  /// Delivers a packet and returns whether the driver received it.
  private func receives(_ net: inout TestNetwork, _ destination: [UInt8], vlan: UInt16? = nil) throws -> Bool {
    try net.supply(1, size: 256)
    net.backend.deliver(TestNetwork.frame(to: destination, vlan: vlan))
    return !net.takeFrames().isEmpty
  }

  // MARK: Filter

  @Test("the driver sets modes, tables and its address")
  func filterFollowsTheDriver() throws {
    var net = try TestNetwork()
    #expect(try receives(&net, Self.other))
    #expect(try net.control([0, 0, 0]) == 0)
    #expect(try !receives(&net, Self.other))
    #expect(try receives(&net, TestNetwork.address))
    #expect(try receives(&net, Self.everyone))
    #expect(try net.control([0, 5, 1]) == 0)
    #expect(try !receives(&net, Self.everyone))
    #expect(try net.control([1, 0, 1, 0, 0, 0] + Self.other + [1, 0, 0, 0] + Self.group) == 0)
    #expect(try receives(&net, Self.other))
    #expect(try receives(&net, Self.group))
    #expect(try net.control([1, 0, 0, 0, 0, 0, 0, 0, 0, 0]) == 0)
    #expect(try !receives(&net, Self.other))
    #expect(try net.control([1, 1] + Self.other) == 0)
    #expect(try receives(&net, Self.other))
    #expect(try !receives(&net, TestNetwork.address))
    #expect(try (0..<6).map { UInt8(try net.driver.read(4, $0, .byte)) } == Self.other)
    #expect(net.counters.received.filtered == 4)
  }

  @Test("VLANs are filtered only if the driver negotiated that")
  func vlansAreFilteredIfNegotiated() throws {
    var net = try TestNetwork()
    #expect(try net.control([0, 0, 0]) == 0)
    #expect(try !receives(&net, TestNetwork.address, vlan: 5))
    #expect(try net.control([2, 0, 5, 0]) == 0)
    #expect(try receives(&net, TestNetwork.address, vlan: 5))
    #expect(try net.control([2, 1, 5, 0]) == 0)
    #expect(try !receives(&net, TestNetwork.address, vlan: 5))
    try net.start(net.driver.offered() & ~VirtioFeatures.netControlVLAN.rawValue)
    #expect(try net.control([0, 0, 0]) == 0)
    #expect(try receives(&net, TestNetwork.address, vlan: 5))
  }

  @Test("a refused command changes nothing")
  func refusedCommandsChangeNothing() throws {
    var net = try TestNetwork()
    #expect(try net.control([0, 0, 0]) == 0)
    #expect(try net.control([1, 0, 1, 0, 0, 0] + Self.other + [1, 0, 0, 0]) == 1)
    #expect(try net.control([0, 2]) == 1)
    #expect(try !receives(&net, Self.other))
    #expect(try net.driver.status == 0xf)
  }

  // MARK: Features and sizes

  @Test("each command needs its feature")
  func commandsNeedTheirFeature() throws {
    let commands: [(bytes: [UInt8], feature: VirtioFeatures)] = [
      ([0, 0, 1], .netControlReceive), ([0, 1, 1], .netControlReceive),
      ([0, 2, 1], .netControlReceiveExtra), ([0, 3, 1], .netControlReceiveExtra),
      ([0, 4, 1], .netControlReceiveExtra), ([0, 5, 1], .netControlReceiveExtra),
      ([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], .netControlReceive), ([1, 1, 2, 0, 0, 0, 0, 0], .netControlMAC),
      ([2, 0, 1, 0], .netControlVLAN), ([2, 1, 1, 0], .netControlVLAN), ([4, 0, 1, 0], .netMultiqueue),
      ([5, 0, 0, 0, 0, 0, 0, 0, 0, 0], .netControlGuestOffloads),
    ]
    var parameters = VirtioNetParameters()
    parameters[.netMultiqueue] = true
    for (bytes, feature) in commands {
      var net = try TestNetwork(parameters)
      #expect(try net.control(bytes) == 0, "\(bytes)")
      try net.start(net.driver.offered() & ~feature.rawValue)
      #expect(try net.control(bytes) == 1, "\(bytes)")
    }
  }

  @Test("a command of any length is answered, unless its header is cut")
  func anyLengthIsAnswered() throws {
    var net = try TestNetwork()
    for size in [2, 3, 100, 65536, 65537, 300_000] {
      #expect(try net.control([9] + [UInt8](repeating: 0, count: size - 1)) == 1)
    }
    #expect(try net.driver.status == 0xf)
    #expect(try net.control([0]) == nil)
    #expect(try net.driver.status == 0x4f)
  }

  @Test("a table of 10,000 addresses overflows, and is accepted")
  func longTablesAreAccepted() throws {
    var net = try TestNetwork()
    #expect(try net.control([0, 0, 0]) == 0)
    let addresses = [UInt8](repeating: 0x02, count: 60_000)
    #expect(try net.control([1, 0] + [UInt8](littleEndian: UInt32(10_000)) + addresses + [0, 0, 0, 0]) == 0)
    #expect(try receives(&net, Self.other))
    #expect(try !receives(&net, Self.group))
  }

  @Test("a command without room for the answer asks for a reset")
  func commandsNeedRoomForTheAnswer() throws {
    var net = try TestNetwork()
    net.board.memory.store([0, 0, 0], at: TestNetwork.output)
    net.queues[2].submit([.readable(TestNetwork.output, 3)])
    try net.driver.notify(2)
    #expect(try net.driver.status == 0x4f)
  }

  @Test("a command may be split at any place")
  func commandsAreSplitAnywhere() throws {
    var net = try TestNetwork()
    let at = TestNetwork.output
    net.board.memory.store([1, 1] + Self.other, at: at)
    net.queues[2].submit([
      .readable(at, 1), .readable(at + 1, 3), .readable(at + 4, 4), .writable(at + 0x100, 1), .writable(at + 0x200, 8),
    ])
    try net.driver.notify(2)
    #expect(net.queues[2].takeUsed() == [.init(id: 0, length: 1)])
    #expect(net.net.address.bytes == Self.other)
  }

  // MARK: Queue pairs

  @Test("one pair carries packets at first; the driver may use 1 to all")
  func pairsAreActivated() throws {
    var net = try Self.multiqueue()
    #expect(net.backend.activePairs == [1, 1])
    for pair in 0..<4 {
      try net.supply(2, size: 2048, pair: pair)
      net.backend.deliver(TestNetwork.frame(payload: 50 + pair), pair: pair)
    }
    #expect((0..<4).map { net.takeFrames(pair: $0).count } == [1, 0, 0, 0])
    #expect(try !net.send(TestNetwork.frame(), pair: 2))
    for pairs: UInt8 in [0, 5] { #expect(try net.control([4, 0, pairs, 0]) == 1) }
    #expect(net.net.activePairs == 1)
    // The wake-ups that pairs 1 and 2 ignored are made up for; pair 3 stays inactive.
    #expect(try net.control([4, 0, 3, 0]) == 0)
    #expect(net.backend.activePairs == [1, 1, 3])
    #expect((0..<4).map { net.takeFrames(pair: $0).count } == [0, 1, 1, 0])
    #expect(net.queues[5].takeUsed().count == 1)
    #expect(net.backend.sent.map(\.pair) == [2])
    #expect(try net.control([4, 0, 4, 0]) == 0)
    #expect(net.takeFrames(pair: 3).count == 1)
    // Fewer again.
    #expect(try net.control([4, 0, 2, 0]) == 0)
    net.backend.deliver(TestNetwork.frame(), pair: 2)
    net.backend.deliver(TestNetwork.frame(), pair: 1)
    #expect((0..<4).map { net.takeFrames(pair: $0).count } == [0, 1, 0, 0])
    try net.driver.setStatus(0)
    #expect(net.backend.activePairs.last == 1)
    #expect(net.net.activePairs == 1)
  }

  @Test("without MQ the control queue is the third")
  func controlQueueIsTheThirdWithoutMultiqueue() throws {
    var net = try Self.multiqueue(without: .netMultiqueue)
    // The driver does not know the queues of other pairs.
    net.queues = Array(net.queues[..<3])
    #expect(try net.control([0, 0, 0]) == 0)
    // The last queue serves nothing.
    net.board.memory.store([0, 0, 0], at: TestNetwork.output)
    var last = DriverQueue(memory: net.board.memory, size: 64, at: TestNetwork.rings + 8 * DriverQueue.footprint)
    last.submit([.readable(TestNetwork.output, 3), .writable(TestNetwork.output, 1)])
    try net.driver.notify(8)
    #expect(last.takeUsed() == [])
    #expect(try net.driver.status == 0xf)
  }

  @Test("without CTRL_VQ there is no control queue")
  func noControlQueueWithoutItsFeature() throws {
    var net = try TestNetwork(features: 1 << 32)
    #expect(try net.control([0, 0, 0]) == nil)
    #expect(try net.driver.status == 0xf)
  }

  // MARK: Offloads

  @Test("the driver may switch the offloads that it negotiated")
  func offloadsAreSwitched() throws {
    func command(_ features: VirtioFeatures) -> [UInt8] { [5, 0] + [UInt8](littleEndian: features.rawValue) }
    var net = try TestNetwork(without: .netGuestUFO)
    #expect(try net.control(command([.netGuestChecksum, .netGuestTSO4])) == 0)
    #expect(net.backend.offloads.last == [.checksum, .tso4])
    #expect(try net.control(command([.netGuestChecksum, .netGuestUFO])) == 1)
    #expect(try net.control(command([.netGuestChecksum, .netStatus])) == 1)
    #expect(net.backend.offloads.last == [.checksum, .tso4])
    // Segmentation has no effect without the checksum.
    #expect(try net.control(command(.netGuestTSO6)) == 0)
    #expect(net.backend.offloads.last == [])
    // A packet that the backend received before is dropped.
    try net.supply(2, size: 2048)
    var header = NetworkHeader()
    header.flags = .needsChecksum
    net.backend.deliver(TestNetwork.frame(), header)
    #expect(net.takeFrames() == [])
    #expect(net.counters.received.offload == 1)
  }

  @Test("a packet that waits for buffers is checked again after a change")
  func waitingPacketIsCheckedAgain() throws {
    var net = try TestNetwork()
    net.backend.deliver(TestNetwork.frame(to: Self.other))
    #expect(try net.control([0, 0, 0]) == 0)
    try net.supply(1, size: 2048)
    #expect(net.takeFrames() == [])
    #expect(net.counters.received.filtered == 1)
    net.backend.deliver(TestNetwork.frame(payload: 50))
    net.backend.deliver(TestNetwork.frame(payload: 51))
    #expect(try net.control([0, 1, 1]) == 0)
    try net.supply(1, size: 2048)
    #expect(net.takeFrames() == [50, 51].map { TestNetwork.frame(payload: $0) })
  }

  @Test("when a change drops a packet that waits for buffers, the next one gets them")
  func nextPacketGetsTheBuffers() throws {
    var net = try TestNetwork()
    try net.supply(1, size: 512)
    // This one needs two buffers.
    net.backend.deliver(TestNetwork.frame(to: Self.other, payload: 1000))
    net.backend.deliver(TestNetwork.frame())
    #expect(net.backend.waiting == 1)
    #expect(try net.control([0, 0, 0]) == 0)
    #expect(net.takeFrames() == [TestNetwork.frame()])
  }

  @Test("a reset restores the defaults")
  func resetRestoresTheDefaults() throws {
    var net = try TestNetwork()
    #expect(net.net.announce())
    #expect(try net.control([1, 1] + Self.other) == 0)
    #expect(try net.control([0, 0, 0]) == 0)
    #expect(try net.control([0, 5, 1]) == 0)
    try net.start()
    #expect(try (0..<8).map { UInt8(try net.driver.read(4, $0, .byte)) } == TestNetwork.address + [1, 0])
    #expect(try receives(&net, Self.other))
    #expect(try net.control([0, 0, 0]) == 0)
    #expect(try receives(&net, TestNetwork.address))
    #expect(try receives(&net, Self.everyone))
  }
}
