import Hardware
import PCI
import TestSupport

@testable import Devices

/// A network device with a driver that has started it.
struct TestNetwork {
  static let rings: UInt64 = 0x1_0000
  /// The driver's packets and commands to send.
  static let output: UInt64 = 0x8_0000
  /// The driver's receive buffers.
  static let buffers: UInt64 = 0x10_0000
  static let address: [UInt8] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56]

  let board: TestBoard
  let backend: RecordingNetwork
  let net: VirtioNet
  let pci: VirtioPCI
  let driver: TestDriver
  var queues: [DriverQueue] = []
  /// The difference from physical addresses to the device's.
  let offset: UInt64
  /// The addresses of the receive buffers of each pair, by the head of their chain.
  private var receiveBuffers: [Int: [UInt32: UInt64]] = [:]
  private var nextBuffer = TestNetwork.buffers

  /// - Parameters:
  ///   - features: The features to accept; nil for all that are offered.
  ///   - without: Features that the driver does not accept.
  ///   - offset: The value that the driver adds to each address.
  init(
    _ parameters: VirtioNetParameters = VirtioNetParameters(),
    capabilities: NetworkCapabilities = RecordingNetwork.everything, features: UInt64? = nil,
    without: VirtioFeatures = [], remapper: PageRemapper? = nil, offset: UInt64 = 0,
    workers: (any QueueWorkerSource)? = nil, datapath: (any QueueDatapath)? = nil
  ) throws {
    board = TestBoard(remapper: remapper, workers: workers)
    backend = RecordingNetwork(memory: board.memory, capabilities: capabilities, datapath: datapath)
    net = try VirtioNet(parameters: parameters, backend: backend)
    pci = VirtioPCI(
      device: net, options: parameters.transport, environment: board.environment,
      address: RequesterID(bus: 0, device: 2, function: 0))
    board.plug(pci)
    driver = TestDriver(pci, on: board)
    self.offset = offset
    try start(try features ?? driver.offered() & ~without.rawValue)
  }

  /// Resets the device and starts it with all its queues.
  mutating func start(_ features: UInt64? = nil) throws {
    try driver.negotiate(features)
    queues = []
    receiveBuffers = [:]
    nextBuffer = Self.buffers
    for index in net.queueSizes.indices {
      let base = Self.rings + UInt64(index) * DriverQueue.footprint
      board.memory.store([UInt8](repeating: 0, count: Int(DriverQueue.footprint)), at: base)
      queues.append(try driver.setUp(queue: UInt16(index), at: base, vector: UInt16(index), offset: offset))
    }
    try driver.start()
  }

  // MARK: Sending

  /// Makes a packet available, without a notification.
  /// - Parameter pieces: the sizes of the buffers; the last one takes the rest.
  mutating func queue(
    _ frame: [UInt8], _ header: NetworkHeader = NetworkHeader(), pieces: [Int] = [], pair: Int = 0
  ) {
    let bytes = header.bytes
    let packet = (0..<12).map { bytes[$0] } + frame
    board.memory.store(packet, at: Self.output)
    var buffers: [DriverQueue.Buffer] = []
    var at = 0
    for size in pieces + [packet.count - pieces.reduce(0, +)] {
      buffers.append(.readable(Self.output + UInt64(at) + offset, size))
      at += size
    }
    queues[2 * pair + 1].submit(buffers)
  }

  /// Sends a packet.
  /// - Returns: whether the device returned the chain.
  @discardableResult
  mutating func send(
    _ frame: [UInt8], _ header: NetworkHeader = NetworkHeader(), pieces: [Int] = [], pair: Int = 0
  ) throws -> Bool {
    queue(frame, header, pieces: pieces, pair: pair)
    try driver.notify(UInt16(2 * pair + 1))
    return queues[2 * pair + 1].takeUsed().count == 1
  }

  // MARK: Receiving

  /// Makes receive buffers available, and notifies.
  mutating func supply(_ count: Int, size: Int, pair: Int = 0) throws {
    for _ in 0..<count {
      let head = queues[2 * pair].submit([.writable(nextBuffer + offset, size)])
      receiveBuffers[pair, default: [:]][UInt32(head)] = nextBuffer
      nextBuffer += UInt64(size + 15) & ~15
    }
    try driver.notify(UInt16(2 * pair))
  }

  /// Returns the received packets: the bytes that the device wrote to each buffer.
  mutating func takeBuffers(pair: Int = 0) -> [[UInt8]] {
    queues[2 * pair].takeUsed().map { used in
      board.memory.copy(receiveBuffers[pair]![used.id]!, count: Int(used.length))!
    }
  }

  /// Returns the frames of received packets that each fit one buffer.
  mutating func takeFrames(pair: Int = 0) -> [[UInt8]] { takeBuffers(pair: pair).map { Array($0.dropFirst(12)) } }

  var counters: (received: NetworkReceiveCounters, sent: NetworkTransmitCounters) { net.counters(pair: 0) }

  // MARK: Control

  /// Sends a command: class, command, data.
  /// - Returns: the answer, 0 or 1; nil if the device did not answer.
  mutating func control(_ bytes: [UInt8]) throws -> UInt8? {
    let ack = Self.output - 0x100
    board.memory.store([0xee], at: ack)
    board.memory.store(bytes, at: Self.output)
    let index = queues.count - 1
    queues[index].submit([.readable(Self.output + offset, bytes.count), .writable(ack + offset, 1)])
    try driver.notify(UInt16(index))
    guard queues[index].takeUsed().last?.length == 1 else { return nil }
    return board.memory.copy(ack, count: 1)?.first
  }

  // MARK: Frames

  /// An Ethernet frame with a payload of ascending bytes.
  static func frame(to destination: [UInt8] = address, vlan: UInt16? = nil, payload: Int = 46) -> [UInt8] {
    var frame = destination + [0x02, 0, 0, 0, 0, 1]
    if let vlan { frame += [0x81, 0x00, UInt8(vlan >> 8), UInt8(vlan & 0xff)] }
    frame += [0x08, 0x00]
    return frame + (0..<payload).map { UInt8(truncatingIfNeeded: $0) }
  }
}
