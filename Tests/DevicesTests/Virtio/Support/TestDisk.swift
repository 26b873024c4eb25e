import Devices
import Hardware
import PCI
import TestSupport

/// A disk that its driver has started.
struct TestDisk {
  static let rings: UInt64 = 0x1_0000
  /// Headers, statuses and data of requests.
  static let header: UInt64 = 0x8_0000
  static let status: UInt64 = 0x8_0800
  static let data: UInt64 = 0x10_0000

  let board: TestBoard
  let backend: MemoryBackend
  let block: VirtioBlock
  let pci: VirtioPCI
  let driver: TestDriver
  var queues: [DriverQueue] = []
  /// The difference from physical addresses to the device's.
  let offset: UInt64

  /// - Parameters:
  ///   - features: The features to accept; nil for all that are offered.
  ///   - offset: The value that the driver adds to each address.
  init(
    _ options: VirtioBlockParameters = VirtioBlockParameters(), sectors: Int = 64, readOnly: Bool = false,
    features: UInt64? = nil, remapper: PageRemapper? = nil, offset: UInt64 = 0,
    workers: (any QueueWorkerSource)? = nil
  ) throws {
    board = TestBoard(remapper: remapper, workers: workers)
    // A pattern of 64 sectors repeats.
    let pattern = (0..<64 * 512).map { UInt8(truncatingIfNeeded: $0 / 512 &+ $0 &* 7) }
    var content: [UInt8] = []
    while content.count < sectors * 512 { content += pattern }
    content.removeLast(content.count - sectors * 512)
    backend = MemoryBackend(memory: board.memory, content: content, isReadOnly: readOnly)
    block = try VirtioBlock(options: options, backend: backend)
    pci = VirtioPCI(
      device: block, options: options.transport, environment: board.environment,
      address: RequesterID(bus: 0, device: 2, function: 0))
    board.plug(pci)
    driver = TestDriver(pci, on: board)
    self.offset = offset
    try driver.negotiate(features)
    for index in 0..<(options.queueCount ?? 1) {
      queues.append(
        try driver.setUp(
          queue: index, at: Self.rings + UInt64(index) * DriverQueue.footprint, vector: index, offset: offset))
    }
    try driver.start()
  }

  /// Writes a request's header, and marks the status as not yet written.
  func prepare(_ type: UInt32, _ sector: UInt64) {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: type)
    bytes.append(littleEndian: UInt32(0))
    bytes.append(littleEndian: sector)
    board.memory.store(bytes, at: Self.header)
    board.memory.store([0xee], at: Self.status)
  }

  var statusByte: UInt8? { board.memory.copy(Self.status, count: 1)?.first }

  /// Makes a request on a queue and notifies.
  /// - Parameter buffers: The data, with physical addresses.
  /// - Returns: The status byte and the used length, or nil if the device did not return the chain.
  @discardableResult
  mutating func request(
    _ type: UInt32, sector: UInt64 = 0, _ buffers: [DriverQueue.Buffer] = [], queue index: Int = 0
  ) throws -> (status: UInt8, length: UInt32)? {
    prepare(type, sector)
    var all = [DriverQueue.Buffer.readable(Self.header, 16)] + buffers + [.writable(Self.status, 1)]
    for index in all.indices { all[index].address += offset }
    queues[index].submit(all)
    try driver.notify(UInt16(index))
    guard let used = queues[index].takeUsed().last, let status = statusByte else { return nil }
    return (status, used.length)
  }
}
