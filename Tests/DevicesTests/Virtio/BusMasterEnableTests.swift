import Hardware
import PCI
import Synchronization
import TestSupport
import Testing

@testable import Devices

/// Tests that a driver which clears Bus Master Enable while the device serves a queue gets each chain back once, after
/// it has set the bit again. A remapper clears the bit at a chosen access.
@Suite struct BusMasterEnableTests {
  // MARK: The queue

  /// The owner of a queue without a transport.
  private final class QueueOwner: VirtQueueOwner {
    private let count = Mutex(0)
    var isRunning: Bool { true }
    var signals: Int { count.withLock { $0 } }
    func signalUsed() { count.withLock { $0 += 1 } }
  }

  /// An access of the device to the rings while it completes the first chain of a queue of 8 descriptors.
  enum RingAccess: UInt64, CaseIterable {
    case usedHead = 0x2004
    case usedLength = 0x2008
    case usedIndex = 0x2002
    case flags = 0x1000
    case usedEvent = 0x1014

    /// The features with which the device makes the access.
    var features: [VirtioFeatures] {
      switch self {
      case .usedHead, .usedLength, .usedIndex: [.version1, [.version1, .eventIndex]]
      case .flags: [.version1]
      case .usedEvent: [[.version1, .eventIndex]]
      }
    }
  }

  private static let rings: UInt64 = 0x1_0000
  private let remapper = PageRemapper(memory: HeapMemory(size: 1 << 20))
  private let requester = Requester(id: RequesterID(rawValue: 8), busMasterEnable: true)
  private let owner = QueueOwner()

  private func make(_ features: VirtioFeatures) -> (DriverQueue, VirtQueue) {
    remapper.memory.store([UInt8](repeating: 0, count: Int(DriverQueue.footprint)), at: Self.rings)
    remapper.map(0, to: 0, count: 1 << 20)
    let driver = DriverQueue(memory: remapper.memory, size: 8, at: Self.rings)
    let port = remapper.makePort(for: requester)
    return (driver, VirtQueue(layout: driver.layout(), features: features, port: port, owner: owner))
  }

  @Test(
    "a completed chain is returned once, whatever ring access is refused", arguments: RingAccess.allCases, [1, 2])
  func completedChainsAreReturnedOnce(access: RingAccess, chains: Int) throws {
    for features in access.features {
      var (driver, queue) = make(features)
      let signals = owner.signals
      for _ in 0..<chains { driver.submit([.writable(0x100, 16)]) }
      driver.setUsedEvent(0)
      var served: [UInt16] = []
      func drain() throws {
        try queue.drain { queue throws(VirtQueueError) in
          served.append(queue.chain.head)
          try queue.complete(head: queue.chain.head, written: UInt32(queue.chain.head) + 7)
        }
      }
      remapper.atNextUse(of: Self.rings + access.rawValue) { [requester] in requester.busMasterEnable = false }
      #expect(throws: VirtQueueError.memory(.disabled)) { try drain() }
      #expect(owner.signals == signals, "no interrupt without bus mastering")
      // A service without bus mastering changes nothing.
      #expect(throws: VirtQueueError.memory(.disabled)) { try drain() }
      requester.busMasterEnable = true
      try drain()
      #expect(served == (0..<UInt16(chains)).map { $0 }, "a completed chain is not served again")
      #expect(driver.takeUsed() == (0..<UInt32(chains)).map { .init(id: $0, length: $0 + 7) })
      // The event index asks for an interrupt at the first chain only.
      #expect(owner.signals - signals == (features.contains(.eventIndex) ? 1 : chains))
      #expect(try !queue.next())
    }
  }

  @Test("chains that are completed together become visible together", arguments: [2, 4, 16] as [UInt64])
  func severalChains(offset: UInt64) throws {
    var (driver, queue) = make(.version1)
    for _ in 0..<3 { driver.submit([.writable(0x100, 16)]) }
    var chains: [VirtQueue.UsedChain] = []
    while try queue.next() { chains.append(.init(head: queue.chain.head, written: 5)) }
    remapper.atNextUse(of: driver.used + offset) { [requester] in requester.busMasterEnable = false }
    #expect(throws: VirtQueueError.memory(.disabled)) { try queue.complete(chains) }
    #expect(driver.takeUsed() == [])
    requester.busMasterEnable = true
    try queue.suppressNotifications()
    #expect(driver.takeUsed() == (0..<3).map { .init(id: $0, length: 5) })
    #expect(owner.signals == 1)
  }

  @Test("a chain that is not completed is served again; after another error it is not")
  func unfinishedChains() throws {
    var (driver, queue) = make(.version1)
    driver.submit([.readable(0x100, 16)])
    driver.submit([.readable(0x200, 16)])
    var served: [UInt16] = []
    var error = VirtQueueError.memory(.disabled)
    func drain(fails: Bool) throws {
      try queue.drain { queue throws(VirtQueueError) in
        served.append(queue.chain.head)
        if fails { throw error }
        try queue.complete(head: queue.chain.head, written: 0)
      }
    }
    #expect(throws: error) { try drain(fails: true) }
    error = .memory(.translation)
    #expect(throws: error) { try drain(fails: true) }
    try drain(fails: false)
    #expect(served == [0, 0, 1])
    #expect(driver.takeUsed().map(\.id) == [1])
  }

  // MARK: Devices

  private static let shift: UInt64 = 0x7_0000_0000

  private static func translatedMemory() -> PageRemapper {
    let remapper = PageRemapper(memory: HeapMemory(size: 4 << 20))
    remapper.map(shift, to: 0, count: 4 << 20)
    return remapper
  }

  /// A disk's request that is interrupted, by the access at which Bus Master Enable is cleared.
  struct DiskRequest: CustomTestStringConvertible {
    let testDescription: String
    let type: UInt32
    /// The physical address of the access.
    let address: UInt64
    /// How often the backend carries the request out.
    let operations: Int
  }

  private static let requests = [
    DiskRequest(testDescription: "a read's header", type: 0, address: TestDisk.header, operations: 1),
    DiskRequest(testDescription: "a read's data", type: 0, address: TestDisk.data, operations: 1),
    DiskRequest(testDescription: "a read's status", type: 0, address: TestDisk.status, operations: 2),
    DiskRequest(testDescription: "a read's used entry", type: 0, address: TestDisk.rings + 0x2004, operations: 1),
    DiskRequest(testDescription: "a write's data", type: 1, address: TestDisk.data, operations: 1),
    DiskRequest(testDescription: "a write's status", type: 1, address: TestDisk.status, operations: 2),
    DiskRequest(testDescription: "a flush's status", type: 4, address: TestDisk.status, operations: 2),
    DiskRequest(testDescription: "an ID's buffer", type: 8, address: TestDisk.data, operations: 0),
    DiskRequest(testDescription: "a discard's ranges", type: 11, address: TestDisk.data, operations: 1),
    DiskRequest(testDescription: "a discard's status", type: 11, address: TestDisk.status, operations: 2),
    DiskRequest(testDescription: "a discard's used index", type: 11, address: TestDisk.rings + 0x2002, operations: 1),
  ]

  @Test("a disk's request survives that the bit is cleared while it is served", arguments: requests)
  func diskRequests(_ request: DiskRequest) throws {
    let remapper = Self.translatedMemory()
    var options = VirtioBlockParameters()
    options.transport.iommuPlatform = true
    options.serial = "serial"
    var disk = try TestDisk(options, remapper: remapper, offset: Self.shift)
    let before = disk.backend.bytes
    let requester = disk.pci.function.requester
    let isRange = request.type == 11
    let isRead = request.type == 0 || request.type == 8
    disk.board.memory.store(
      isRange ? [3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0] : [UInt8](repeating: 0x33, count: 512),
      at: TestDisk.data)
    let size = isRange ? 16 : request.type == 8 ? 20 : 512
    let data: DriverQueue.Buffer = isRead ? .writable(TestDisk.data, size) : .readable(TestDisk.data, size)

    remapper.atNextUse(of: Self.shift + request.address) { requester.busMasterEnable = false }
    #expect(try disk.request(request.type, request.type == 4 ? [] : [data]) == nil)
    #expect(!requester.busMasterEnable)
    disk.driver.setBusMaster(true)
    #expect(disk.queues[0].takeUsed() == [.init(id: 0, length: isRead ? UInt32(size) + 1 : 1)])
    #expect(disk.statusByte == 0)
    #expect(disk.backend.operations.count == request.operations)
    #expect(Set(disk.backend.operations.map { "\($0)" }).count <= 1, "the same operation each time")
    switch request.type {
    case 0: #expect(disk.board.memory.copy(TestDisk.data, count: 512) == Array(before[..<512]))
    case 1: #expect(disk.backend.bytes[..<512].allSatisfy { $0 == 0x33 })
    default: #expect(disk.backend.bytes == before)
    }
    #expect(try disk.request(0, [.writable(TestDisk.data, 512)])?.status == 0, "the queue continues")
    #expect(try disk.driver.status == 0xf)
  }

  @Test("a request for entropy survives", arguments: [0x8_0000, 0x8_1000, 0x1_2004] as [UInt64])
  func entropyRequests(address: UInt64) throws {
    let remapper = Self.translatedMemory()
    let timer = IdleTimer()
    var (pci, driver, queue) = try Self.entropy(EntropyLimit(bytes: 1000, period: 10, timer: timer), remapper)
    let requester = pci.function.requester
    remapper.atNextUse(of: Self.shift + address) { requester.busMasterEnable = false }
    queue.submit([.writable(Self.shift + 0x8_0000, 16), .writable(Self.shift + 0x8_1000, 16)])
    try driver.notify(0)
    #expect(!requester.busMasterEnable && queue.takeUsed() == [])
    driver.setBusMaster(true)
    #expect(queue.takeUsed() == [.init(id: 0, length: 32)])
    #expect(remapper.memory.copy(0x8_1000, count: 16) == [UInt8](repeating: 7, count: 16))
    #expect(try driver.status == 0xf)
  }

  @Test("entropy that is written in part counts against the limit")
  func interruptedEntropyCounts() throws {
    let remapper = Self.translatedMemory()
    let limit = EntropyLimit(bytes: 100, period: 10, timer: IdleTimer())
    var (pci, driver, queue) = try Self.entropy(limit, remapper)
    let requester = pci.function.requester
    queue.submit([.writable(Self.shift + 0x8_0000, 32), .writable(Self.shift + 0x8_1000, 32)])
    remapper.atNextUse(of: Self.shift + 0x8_1000) { requester.busMasterEnable = false }
    try driver.notify(0)
    driver.setBusMaster(true)
    #expect(queue.takeUsed() == [.init(id: 0, length: 36)], "64 of the 100 bytes were written before")
  }

  private static func entropy(
    _ limit: EntropyLimit, _ remapper: PageRemapper
  ) throws -> (VirtioPCI, TestDriver, DriverQueue) {
    let board = TestBoard(remapper: remapper)
    var options = VirtioOptions()
    options.iommuPlatform = true
    let pci = VirtioPCI(
      device: VirtioEntropy(source: ConstantSource(), limit: limit), options: options,
      environment: board.environment, address: RequesterID(bus: 0, device: 4, function: 0))
    board.plug(pci)
    let driver = TestDriver(pci, on: board)
    try driver.negotiate()
    let queue = try driver.setUp(queue: 0, at: 0x1_0000, offset: shift)
    try driver.start()
    return (pci, driver, queue)
  }

  @Test("a packet or a command is neither lost nor repeated if the bit is cleared while it is completed")
  func networkCompletions() throws {
    let remapper = Self.translatedMemory()
    var parameters = VirtioNetParameters()
    parameters.transport.iommuPlatform = true
    var net = try TestNetwork(parameters, remapper: remapper, offset: Self.shift)
    let requester = net.pci.function.requester
    func stop(_ queue: Int, at offset: UInt64) {
      remapper.atNextUse(of: Self.shift + net.queues[queue].used + offset) { requester.busMasterEnable = false }
    }
    // The second of three merged buffers.
    try net.supply(3, size: 1024)
    stop(0, at: 12)
    let frame = TestNetwork.frame(payload: 2500)
    net.backend.deliver(frame)
    #expect(!requester.busMasterEnable && net.queues[0].takeUsed() == [])
    net.driver.setBusMaster(true)
    let buffers = net.takeBuffers()
    #expect(buffers.map(\.count) == [1024, 1024, 478])
    #expect(buffers.flatMap { $0 }.dropFirst(12) == frame[...])
    // A packet that was sent.
    stop(1, at: 2)
    #expect(try !net.send(frame))
    net.driver.setBusMaster(true)
    #expect(net.queues[1].takeUsed().map(\.id) == [0])
    #expect(net.backend.sent.map(\.frame) == [frame])
    // A command that was performed.
    stop(2, at: 4)
    #expect(try net.control([1, 1, 2, 0, 0, 0, 0, 9]) == nil)
    net.driver.setBusMaster(true)
    #expect(net.queues[2].takeUsed().map(\.length) == [1])
    #expect(net.net.address == MACAddress(rawValue: 0x0200_0000_0009))
    #expect(try net.driver.status == 0xf)
  }
}

private final class IdleTimer: OneShotTimer {
  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {}
}

private final class ConstantSource: EntropySource {
  func take(_ count: Int, into bytes: inout [UInt8]) -> Int {
    for index in 0..<count { bytes[index] = 7 }
    return count
  }

  func onReady(_ handler: @escaping @Sendable () -> Void) {}
}
