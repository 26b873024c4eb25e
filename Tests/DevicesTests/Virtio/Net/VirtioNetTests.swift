import Hardware
import TestSupport
import Testing

@testable import Devices

/// Tests features, configuration, link and announcements of a network device: virtio 1.2, 5.1.3 and 5.1.4.
@Suite struct VirtioNetTests {
  private static let ring: UInt64 = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40

  private static func bits(_ numbers: [Int]) -> UInt64 { numbers.reduce(0) { $0 | 1 << UInt64($1) } }

  /// The features that need nothing of the backend: MAC, MRG_RXBUF, STATUS and the control queue's.
  private static let plain = bits([5, 15, 16, 17, 18, 19, 20, 21, 23])
  private static let sending = bits([0, 11, 12, 13, 14, 56])
  private static let receiving = bits([1, 7, 8, 9, 10, 54, 55])

  private static func offered(
    _ capabilities: NetworkCapabilities = RecordingNetwork.everything,
    _ change: (inout VirtioNetParameters) -> Void = { _ in }
  ) throws -> UInt64 {
    var parameters = VirtioNetParameters()
    change(&parameters)
    return try TestNetwork(parameters, capabilities: capabilities).driver.offered() & ~ring
  }

  // MARK: Features

  @Test("features depend on what the backend can do")
  func featuresFollowTheBackend() throws {
    #expect(try Self.offered() == Self.plain | Self.sending | Self.receiving | 1 << 2)
    #expect(try Self.offered(NetworkCapabilities()) == Self.plain)
    #expect(
      try Self.offered(NetworkCapabilities(sends: [.checksum, .tso4, .ecn])) == Self.plain | Self.bits([0, 11, 13]))
    // HOST_USO needs both protocols. Without a checksum there is no segmentation.
    #expect(try Self.offered(NetworkCapabilities(sends: [.checksum, .uso4])) == Self.plain | 1)
    #expect(try Self.offered(NetworkCapabilities(sends: [.tso4, .tso6, .ecn, .ufo, .uso4, .uso6])) == Self.plain)
    #expect(
      try Self.offered(NetworkCapabilities(receives: [.checksum, .tso6, .uso6]))
        == Self.plain | Self.bits([1, 2, 8, 55]))
  }

  @Test("each property switches its feature, and those that require it")
  func propertiesSwitchFeatures() throws {
    let all = try Self.offered()
    for (name, feature, isDefault) in VirtioNetParameters.featureProperties {
      let toggled = try Self.offered { $0[feature].toggle() }
      #expect((toggled & feature.rawValue != 0) == !isDefault, "\(name)")
      let others = (all ^ toggled) & ~feature.rawValue
      let expected: [Int] =
        switch name {
        case "csum": [11, 12, 13, 14, 56]
        case "guest_csum": [2, 7, 8, 9, 10, 54, 55]
        case "status": [21]
        case "ctrl_vq": [2, 18, 19, 20, 21, 23]
        case "ctrl_rx": [20]
        default: []
        }
      #expect(others == Self.bits(expected), "\(name)")
    }
    #expect(try Self.offered { $0.mtu = 1500 } == all | 1 << 3)
    #expect(try Self.offered { $0.speed = 1000 } == all | 1 << 63)
    #expect(try Self.offered { $0.duplex = .half } == all | 1 << 63)
    #expect(
      try Self.offered {
        $0[.netHostTSO4] = false
        $0[.netHostTSO6] = false
      } == all & ~Self.bits([11, 12, 13]))
  }

  @Test(
    "a driver that accepts a feature without the one it requires is refused",
    arguments: [
      [7], [8], [1, 9], [10], [54], [55], [11], [12], [0, 13], [14], [56], [18], [19], [21], [22], [23],
    ] as [[Int]])
  func requirementsAreEnforced(features: [Int]) throws {
    var parameters = VirtioNetParameters()
    parameters[.netMultiqueue] = true
    let net = try TestNetwork(parameters)
    #expect(throws: TestDriver.Failure.self) { try net.driver.negotiate(1 << 32 | Self.bits(features)) }
    // With the features that all others require, it is accepted.
    try net.driver.negotiate(1 << 32 | Self.bits(features + [0, 1, 7, 11, 17]))
  }

  @Test("each invalid option is refused")
  func optionsAreChecked() throws {
    func problem(
      pairs: Int = 1, _ change: (inout VirtioNetParameters) -> Void
    ) -> VirtioNetParameters.Problem? {
      var parameters = VirtioNetParameters()
      change(&parameters)
      let backend = RecordingNetwork(memory: HeapMemory(size: 16), capabilities: NetworkCapabilities(pairs: pairs))
      do { _ = try VirtioNet(parameters: parameters, backend: backend) } catch { return error }
      return nil
    }
    #expect(problem { _ in } == nil)
    let group = MACAddress(rawValue: 0x0100_5e00_0001)
    #expect(problem { $0.address = group } == .address)
    for size in [128, 300, 2048] as [UInt16] {
      #expect(problem { $0.receiveQueueSize = size } == .receiveQueueSize)
      #expect(problem { $0.transmitQueueSize = size } == .transmitQueueSize)
    }
    #expect(problem { $0.mtu = 67 } == .mtu)
    #expect(problem { $0.mtu = 68 } == nil)
    #expect(problem { $0.speed = 0x8000_0000 } == .speed)
    #expect(problem { $0.transport.vectors = 2049 } == .vectors)
    #expect(problem(pairs: 0) { _ in } == .queuePairs)
    #expect(problem(pairs: 512) { _ in } == .queuePairs)
    #expect(problem(pairs: 511) { $0[.netMultiqueue] = true } == nil)
  }

  // MARK: Configuration

  @Test("the configuration matches byte for byte")
  func configurationByteForByte() throws {
    var parameters = VirtioNetParameters()
    parameters[.netMultiqueue] = true
    parameters.mtu = 9000
    parameters.speed = 25000
    parameters.duplex = .full
    let net = try TestNetwork(parameters, capabilities: NetworkCapabilities(pairs: 4))
    let golden: [UInt8] = [
      0x52, 0x54, 0x00, 0x12, 0x34, 0x56,  // mac
      1, 0, 4, 0, 0x28, 0x23,  // status, max_virtqueue_pairs, mtu
      0xa8, 0x61, 0, 0, 1,  // speed, duplex
    ]
    #expect(try (0..<17).map { UInt8(try net.driver.read(4, $0, .byte)) } == golden)
    #expect(try net.driver.capability(4).structureLength == 17)
    #expect(net.driver.config(0x00, .doubleword) == 0x1041_1af4)
    #expect(net.driver.config(0x08, .doubleword) == 0x0200_0001)
    #expect(try TestNetwork().driver.read(4, 8, .doubleword) == 1)
    #expect(try TestNetwork().driver.read(4, 12, .doubleword) == 0xffff_ffff)
    #expect(try TestNetwork().driver.read(4, 16, .byte) == 0xff)
  }

  @Test("queues come in pairs, with the control queue last")
  func queuesComeInPairs() throws {
    func sizes(_ pairs: Int, _ change: (inout VirtioNetParameters) -> Void) throws -> [UInt16] {
      var parameters = VirtioNetParameters()
      parameters.receiveQueueSize = 1024
      change(&parameters)
      let backend = RecordingNetwork(memory: HeapMemory(size: 16), capabilities: NetworkCapabilities(pairs: pairs))
      return try VirtioNet(parameters: parameters, backend: backend).queueSizes
    }
    #expect(try sizes(1) { _ in } == [1024, 256, 64])
    #expect(try sizes(2) { $0[.netMultiqueue] = true } == [1024, 256, 1024, 256, 64])
    // Without MQ only one pair of the backend is used; MQ needs the control queue.
    #expect(try sizes(2) { _ in } == [1024, 256, 64])
    #expect(
      try sizes(2) {
        $0[.netMultiqueue] = true
        $0[.netControlQueue] = false
      } == [1024, 256])
  }

  // MARK: Offloads of the backend

  @Test("the backend learns the offloads at each start, and loses them at a reset")
  func backendLearnsTheOffloads() throws {
    var net = try TestNetwork()
    #expect(net.backend.offloads == [[], [], NetworkOffloads(rawValue: 0x7f)])
    try net.driver.setStatus(0)
    #expect(net.backend.offloads.last == [])
    try net.start(1 << 32 | Self.bits([1, 8]))
    #expect(net.backend.offloads.last == [.checksum, .tso6])
    try net.start(1 << 32)
    #expect(net.backend.offloads.last == [])
  }

  // MARK: Link

  @Test("a command between a change of the backend's link and its report does not hide the change")
  func linkChangeBesideACommand() throws {
    var net = try TestNetwork()
    net.driver.enableMSIX(vectors: 4)
    try net.driver.setCommon(0x10, .word, 3)
    net.backend.changeLink(up: false)
    #expect(try net.control([0, 0, 0]) == 0)
    net.backend.reportLink()
    #expect(try net.driver.read(4, 6, .word) == 0)
    #expect(net.driver.messages.contains(0x43))
  }

  @Test("the link follows the monitor and the backend, and the driver is interrupted at a change")
  func linkFollowsMonitorAndBackend() throws {
    let net = try TestNetwork()
    net.driver.enableMSIX(vectors: 3)
    try net.driver.setCommon(0x10, .word, 2)
    func status() throws -> UInt64 { try net.driver.read(4, 6, .word) }
    let generation = try net.driver.common(0x15, .byte)
    #expect(try status() == 1)
    net.net.setLink(up: true)
    net.backend.setLink(up: true)
    #expect(net.driver.messages == [])
    net.net.setLink(up: false)
    #expect(try status() == 0)
    #expect(net.driver.messages == [0x42])
    #expect(try net.driver.common(0x15, .byte) == (generation + 1) & 0xff)
    // The backend's link is down as well: both must come back.
    net.backend.setLink(up: false)
    net.net.setLink(up: true)
    #expect(try status() == 0)
    #expect(net.driver.messages == [0x42])
    net.backend.setLink(up: true)
    #expect(try status() == 1)
    #expect(net.driver.messages == [0x42, 0x42])
    // A reset keeps what the monitor set.
    net.net.setLink(up: false)
    try net.driver.setStatus(0)
    #expect(try status() == 0)
    #expect(!net.net.isLinkUp)
  }

  @Test("a link that is down drops packets both ways")
  func linkDownDropsPackets() throws {
    var net = try TestNetwork()
    try net.supply(4, size: 2048)
    net.net.setLink(up: false)
    net.backend.deliver(TestNetwork.frame(payload: 50))
    #expect(net.backend.waiting == 0)
    #expect(net.takeFrames() == [])
    #expect(try net.send(TestNetwork.frame()))
    #expect(net.backend.sent == [])
    #expect(net.counters.received.linkDown == 1)
    #expect(net.counters.sent.linkDown == 1)
    net.net.setLink(up: true)
    net.backend.deliver(TestNetwork.frame(payload: 51))
    #expect(net.takeFrames() == [TestNetwork.frame(payload: 51)])
    #expect(try net.send(TestNetwork.frame()))
    #expect(net.backend.sent.count == 1)
  }

  @Test("packets that wait for the backend are dropped when the link goes down")
  func linkDownEndsWaiting() throws {
    var net = try TestNetwork()
    net.backend.setRoom(0)
    #expect(try !net.send(TestNetwork.frame()))
    net.backend.setLink(up: false)
    #expect(net.queues[1].takeUsed().count == 1)
    #expect(net.counters.sent.linkDown == 1)
  }

  // MARK: Announcements

  @Test("an announcement stays until the driver acknowledges it")
  func announcementIsAcknowledged() throws {
    var net = try TestNetwork()
    net.driver.enableMSIX(vectors: 3)
    try net.driver.setCommon(0x10, .word, 2)
    #expect(try net.control([3, 0]) == 1, "nothing to acknowledge")
    let before = net.driver.messages.count
    #expect(net.net.announce())
    #expect(try net.driver.read(4, 6, .word) == 3)
    #expect(net.driver.messages.count == before + 1)
    #expect(try net.control([3, 0]) == 0)
    #expect(try net.driver.read(4, 6, .word) == 1)
    // Not without the feature, nor with the link down.
    net.net.setLink(up: false)
    #expect(!net.net.announce())
    net.net.setLink(up: true)
    try net.start(net.driver.offered() & ~(1 << 21))
    #expect(!net.net.announce())
  }
}
