import Hardware
import Synchronization
import TestSupport
import Testing

@testable import Devices

/// The owner of a queue without a transport.
private final class QueueOwner: VirtQueueOwner {
  private let state = Mutex((running: true, signals: 0))
  var isRunning: Bool { state.withLock { $0.running } }
  var signals: Int { state.withLock { $0.signals } }
  func signalUsed() { state.withLock { $0.signals += 1 } }
  func halt() { state.withLock { $0.running = false } }
}

/// RAM that records the stores of 16 bits to one address.
private final class IndexRecorder: WrappedMemory {
  let memory: HeapMemory
  let address: UInt64
  private let stores = Mutex<[UInt16]>([])
  var values: [UInt16] { stores.withLock { $0 } }

  init(_ memory: HeapMemory, at address: UInt64) {
    self.memory = memory
    self.address = address
  }

  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool {
    if address == self.address { stores.withLock { $0.append(value) } }
    return memory.storeUInt16(value, at: address)
  }
}

@Suite struct VirtQueueTests {
  private static let indirect: VirtioFeatures = [.version1, .indirectDescriptors]
  private let memory = HeapMemory(size: 1 << 20)
  private let owner = QueueOwner()

  private func make(size: UInt16 = 8, features: VirtioFeatures = indirect) -> (DriverQueue, VirtQueue) {
    let driver = DriverQueue(memory: memory, size: size, at: 0x1_0000)
    let port = DirectDMAPort(
      memory: memory, requester: Requester(id: RequesterID(rawValue: 8), busMasterEnable: true))
    return (driver, VirtQueue(layout: driver.layout(), features: features, port: port, owner: owner))
  }

  /// Returns the buffers of a chain.
  private func buffers(_ chain: DescriptorChain) -> [DriverQueue.Buffer] {
    chain.readable.list.map { .init(address: $0.address, count: UInt32($0.count), writable: false) }
      + chain.writable.list.map { .init(address: $0.address, count: UInt32($0.count), writable: true) }
  }

  private func expectSame(_ chain: DescriptorChain, _ expected: [DriverQueue.Buffer]) {
    let got = buffers(chain)
    #expect(got.map(\.address) == expected.map(\.address))
    #expect(got.map(\.count) == expected.map(\.count))
    #expect(got.map(\.writable) == expected.map(\.writable))
  }

  @Test("chains are taken in the order of the available ring")
  func takesChainsInTheOrderOfTheAvailableRing() throws {
    var (driver, queue) = make()
    let first: [DriverQueue.Buffer] = [.readable(0x100, 16), .readable(0x200, 512), .writable(0x800, 1)]
    let second: [DriverQueue.Buffer] = [.writable(0x900, 7)]
    driver.submit(first)
    let head = driver.submit(second)
    #expect(try queue.next())
    #expect(queue.chain.head == 0)
    expectSame(queue.chain, first)
    #expect(try queue.next())
    #expect(queue.chain.head == head)
    expectSame(queue.chain, second)
    #expect(try !queue.next())
  }

  @Test("the used ring is filled byte for byte")
  func fillsTheUsedRingByteForByte() throws {
    var (driver, queue) = make(size: 2)
    for written: UInt32 in [0x1122_3344, 5, 6] {
      driver.submit([.writable(0x100, 16)])
      #expect(try queue.next())
      try queue.complete(head: queue.chain.head, written: written)
    }
    // flags, idx 3; entry 0 was written again by the third chain (head 0), entry 1 by the second (head 1).
    #expect(
      memory.copy(driver.used, count: 20) == [
        0, 0, 3, 0, 0, 0, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0,
      ])
  }

  @Test("an indirect table may follow direct descriptors")
  func followsAnIndirectTableAfterDirectDescriptors() throws {
    var (driver, queue) = make()
    driver.writeDescriptor(5, address: 0x100, length: 16, flags: 1, next: 2)
    driver.writeDescriptor(2, address: 0x4008, length: 32, flags: 4)
    driver.writeDescriptor(0, address: 0x200, length: 8, flags: 1, next: 1, table: 0x4008)
    driver.writeDescriptor(1, address: 0x300, length: 9, flags: 2, table: 0x4008)
    driver.offer(5)
    #expect(try queue.next())
    expectSame(queue.chain, [.readable(0x100, 16), .readable(0x200, 8), .writable(0x300, 9)])
  }

  @Test("an indirect table may be larger than the queue")
  func takesAnIndirectTableLargerThanTheQueue() throws {
    var (driver, queue) = make(size: 8)
    let buffers = (0..<UInt64(40)).map { DriverQueue.Buffer.writable(0x1000 + 16 * $0, 16) }
    driver.submit(buffers, indirectAt: 0x4000)
    #expect(try queue.next())
    #expect(queue.chain.writable.list.count == 40)
  }

  @Test("empty buffers are skipped")
  func skipsEmptyBuffers() throws {
    var (driver, queue) = make()
    driver.submit([.readable(0x100, 0), .readable(0x200, 4), .writable(0x300, 0), .writable(0x400, 1)])
    #expect(try queue.next())
    expectSame(queue.chain, [.readable(0x200, 4), .writable(0x400, 1)])
  }

  struct Malformed: CustomTestStringConvertible {
    let name: String
    let error: VirtQueueError
    var features: VirtioFeatures = VirtQueueTests.indirect
    let lay: @Sendable (inout DriverQueue) -> Void
    var testDescription: String { name }
  }

  static let malformed: [Malformed] = [
    Malformed(name: "head past the table", error: .descriptorIndex) { $0.offer(8) },
    Malformed(name: "next past the table", error: .descriptorIndex) {
      $0.writeDescriptor(0, address: 0x100, length: 1, flags: 1, next: 8)
      $0.offer(0)
    },
    Malformed(name: "loop", error: .chainLength) {
      $0.writeDescriptor(0, address: 0x100, length: 1, flags: 1, next: 1)
      $0.writeDescriptor(1, address: 0x100, length: 1, flags: 1, next: 0)
      $0.offer(0)
    },
    Malformed(name: "readable after writable", error: .bufferOrder) {
      $0.submit([.writable(0x100, 1), .readable(0x200, 1)])
    },
    Malformed(name: "4 GiB in all", error: .totalLength) {
      $0.submit([.readable(0x100, 0x8000_0000), .readable(0x100, 0x8000_0000)])
    },
    Malformed(name: "available index too far ahead", error: .availableIndex) {
      $0.memory.storeUInt16(9, at: $0.available + 2)
    },
    Malformed(name: "available index behind", error: .availableIndex) {
      $0.memory.storeUInt16(0xffff, at: $0.available + 2)
    },
    Malformed(name: "indirect not negotiated", error: .indirectTable, features: [.version1]) {
      $0.submit([.readable(0x100, 1)], indirectAt: 0x4000)
    },
    Malformed(name: "indirect with next", error: .indirectTable) {
      $0.writeDescriptor(0, address: 0x4000, length: 16, flags: 5, next: 1)
      $0.offer(0)
    },
    Malformed(name: "empty indirect table", error: .indirectTable) {
      $0.writeDescriptor(0, address: 0x4000, length: 0, flags: 4)
      $0.offer(0)
    },
    Malformed(name: "fractional indirect table", error: .indirectTable) {
      $0.writeDescriptor(0, address: 0x4000, length: 24, flags: 4)
      $0.offer(0)
    },
    Malformed(name: "nested indirect table", error: .indirectTable) {
      $0.writeDescriptor(0, address: 0x4000, length: 16, flags: 4)
      $0.writeDescriptor(0, address: 0x5000, length: 16, flags: 4, table: 0x4000)
      $0.offer(0)
    },
    Malformed(name: "huge indirect table", error: .chainLength) {
      $0.writeDescriptor(0, address: 0x4000, length: 0xffff_fff0, flags: 4)
      $0.offer(0)
    },
    Malformed(name: "loop in an indirect table", error: .chainLength) {
      $0.writeDescriptor(0, address: 0x4000, length: 32, flags: 4)
      $0.writeDescriptor(0, address: 0x100, length: 1, flags: 1, next: 1, table: 0x4000)
      $0.writeDescriptor(1, address: 0x100, length: 1, flags: 1, next: 0, table: 0x4000)
      $0.offer(0)
    },
    Malformed(name: "next past an indirect table", error: .descriptorIndex) {
      $0.writeDescriptor(0, address: 0x4000, length: 32, flags: 4)
      $0.writeDescriptor(0, address: 0x100, length: 1, flags: 1, next: 2, table: 0x4000)
      $0.offer(0)
    },
    Malformed(name: "indirect table that is not RAM", error: .memory(.notMemory)) {
      $0.writeDescriptor(0, address: 0xffff_ffff_ffff_fff0, length: 32, flags: 4)
      $0.offer(0)
    },
  ]

  @Test("each malformed ring is refused with its error", arguments: malformed)
  func refusesWhatIsMalformed(_ malformed: Malformed) {
    var (driver, queue) = make(features: malformed.features)
    malformed.lay(&driver)
    #expect(throws: malformed.error) { try queue.next() }
  }

  @Test("rings outside RAM are refused")
  func refusesRingsOutsideRAM() {
    let layout = VirtQueue.Layout(
      size: 8, descriptorArea: .max - 15, driverArea: .max - 1, deviceArea: 0x1000_0000)
    let port = DirectDMAPort(
      memory: memory, requester: Requester(id: RequesterID(rawValue: 8), busMasterEnable: true))
    var queue = VirtQueue(layout: layout, features: Self.indirect, port: port, owner: owner)
    #expect(throws: VirtQueueError.memory(.notMemory)) { try queue.complete(head: 0, written: 0) }
    #expect(throws: VirtQueueError.memory(.notMemory)) { try queue.requestNotifications() }
    #expect(throws: VirtQueueError.memory(.notMemory)) { try queue.suppressNotifications() }
  }

  @Test("flags suppress interrupts and notifications")
  func flagsSuppressInterruptsAndNotifications() throws {
    var (driver, queue) = make()
    driver.setNoInterrupt(true)
    driver.submit([.writable(0x100, 1)])
    try queue.drain { queue throws(VirtQueueError) in
      #expect(driver.noNotify)
      try queue.complete(head: queue.chain.head, written: 1)
    }
    #expect(!driver.noNotify)
    #expect(owner.signals == 0)
    driver.setNoInterrupt(false)
    driver.submit([.writable(0x100, 1)])
    try queue.drain { queue throws(VirtQueueError) in
      try queue.complete(head: queue.chain.head, written: 1)
    }
    #expect(owner.signals == 1)
  }

  @Test("with event indices, the device interrupts when it passes used_event, and sets avail_event to the next chain")
  func eventIndexInterruptsWhenItIsPassedAndAsksForTheNextChain() throws {
    var (driver, queue) = make(features: [.version1, .eventIndex])
    // The device ignores the flag once the event index is negotiated.
    driver.setNoInterrupt(true)
    driver.setUsedEvent(2)
    var signals: [Int] = []
    for _ in 0..<5 {
      driver.submit([.writable(0x100, 1)])
      try queue.drain { queue throws(VirtQueueError) in
        try queue.complete(head: queue.chain.head, written: 1)
      }
      signals.append(owner.signals)
    }
    // The third entry has the index 2.
    #expect(signals == [0, 0, 1, 1, 1])
    #expect(driver.availableEvent == 5)
    #expect(!driver.noNotify)
  }

  @Test("indices wrap at 65536")
  func indicesWrapAt65536() throws {
    var (driver, queue) = make(features: [.version1, .eventIndex])
    // Four chains per round keep the test short. The driver requests one interrupt, where the indices wrap.
    driver.setUsedEvent(0xffff)
    var served = 0
    for _ in 0..<16385 {
      for _ in 0..<4 { driver.submit([.writable(0x100, 1)]) }
      while try queue.next() {
        try queue.complete(head: queue.chain.head, written: 1)
        served += 1
      }
    }
    #expect(served == 65540)
    #expect(memory.loadUInt16(at: driver.used + 2) == 4)
    #expect(owner.signals == 1)
  }

  @Test("chains that become available during service are served")
  func servesWhatBecomesAvailableMeanwhile() throws {
    var (driver, queue) = make(features: [.version1, .eventIndex])
    driver.submit([.writable(0x100, 1)])
    var served = 0
    try queue.drain { queue throws(VirtQueueError) in
      served += 1
      if served < 20 { driver.submit([.writable(0x100, 1)]) }
      try queue.complete(head: queue.chain.head, written: 1)
    }
    #expect(served == 20)
    #expect(driver.takeUsed().count == 20)
  }

  @Test("a halted queue takes no more chains")
  func takesNothingMoreOnceHalted() throws {
    var (driver, queue) = make()
    for _ in 0..<3 { driver.submit([.writable(0x100, 1)]) }
    var served = 0
    try queue.drain { queue throws(VirtQueueError) in
      served += 1
      owner.halt()
      try queue.complete(head: queue.chain.head, written: 1)
    }
    #expect(served == 1)
    #expect(try !queue.requestNotifications())
  }

  @Test("a chain that arrives while the port is disabled is not lost")
  func disabledPortLosesNoChain() throws {
    let driver = DriverQueue(memory: memory, size: 8, at: 0x1_0000)
    let requester = Requester(id: RequesterID(rawValue: 8), busMasterEnable: true)
    var queue = VirtQueue(
      layout: driver.layout(), features: Self.indirect,
      port: DirectDMAPort(memory: memory, requester: requester), owner: owner)
    var copy = driver
    copy.submit([.writable(0x100, 1)])
    requester.busMasterEnable = false
    #expect(throws: VirtQueueError.memory(.disabled)) { try queue.next() }
    requester.busMasterEnable = true
    #expect(try queue.next())
  }

  @Test("several chains become visible with one store of the index and one interrupt")
  func completesSeveralChainsAtOnce() throws {
    var driver = DriverQueue(memory: memory, size: 4, at: 0x1_0000)
    let recorder = IndexRecorder(memory, at: driver.used + 2)
    let port = DirectDMAPort(
      memory: recorder, requester: Requester(id: RequesterID(rawValue: 8), busMasterEnable: true))
    var queue = VirtQueue(
      layout: driver.layout(), features: [.version1, .eventIndex], port: port, owner: owner)
    driver.setUsedEvent(1)
    // The second round wraps around the ring's end.
    for round: UInt16 in 0..<2 {
      var chains: [VirtQueue.UsedChain] = []
      for _ in 0..<3 { driver.submit([.writable(0x100, 16)]) }
      while try queue.next() { chains.append(.init(head: queue.chain.head, written: UInt32(round) + 7)) }
      try queue.complete(chains)
      #expect(driver.takeUsed() == chains.map { .init(id: UInt32($0.head), length: UInt32(round) + 7) })
    }
    #expect(recorder.values == [3, 6])
    // The driver asked for an interrupt at the entry with index 1, which lies within the first three.
    #expect(owner.signals == 1)
  }

  @Test("several chains can be put back, and come again in order")
  func putsSeveralChainsBack() throws {
    var (driver, queue) = make()
    for _ in 0..<4 { driver.submit([.writable(0x100, 16)]) }
    var heads: [UInt16] = []
    for _ in 0..<3 where try queue.next() { heads.append(queue.chain.head) }
    queue.putBack(2)
    while try queue.next() { heads.append(queue.chain.head) }
    #expect(heads == [0, 1, 2, 1, 2, 3])
  }

  @Test("the address of a byte follows the buffers")
  func findsTheAddressOfAByte() throws {
    var (driver, queue) = make()
    driver.submit([.writable(0x100, 3), .writable(0x200, 4)])
    #expect(try queue.next())
    #expect(try queue.put([1]) == 1)
    let addresses = (0..<7).map { queue.chain.writable.address(ofByte: $0) }
    #expect(addresses == [0x101, 0x102, 0x200, 0x201, 0x202, 0x203, nil])
  }

  @Test("adjacent segments join, and segments can be taken in pieces")
  func segmentsJoinAndComeInPieces() throws {
    var (driver, queue) = make()
    driver.submit([.writable(0x1000, 0x100), .writable(0x1100, 0x100), .writable(0x4000, 0x80)])
    #expect(try queue.next())
    #expect(try queue.takeSegments(for: .write, limit: 0x180, during: queue.port.request()) == 0x180)
    #expect(queue.segments == [PhysicalSegment(address: 0x1000, count: 0x180)])
    #expect(try queue.takeSegments(for: .write, limit: .max, during: queue.port.request()) == 0x100)
    #expect(
      queue.segments == [PhysicalSegment(address: 0x1180, count: 0x80), PhysicalSegment(address: 0x4000, count: 0x80)])
    #expect(try queue.takeSegments(for: .write, limit: .max, during: queue.port.request()) == 0)
  }

  @Test("one call takes a bounded number of segments, and the next call continues")
  func segmentsAreBoundedInNumber() throws {
    let remapper = PageRemapper(memory: memory)
    remapper.map(0x1_0000, to: 0x1_0000, count: 0x3000)
    // 1100 pages alternate between two physical ones, so that no two join.
    for page in 0..<UInt64(1100) { remapper.map(0x10_0000 + page << 12, to: page % 2 << 13, count: 4096) }
    var driver = DriverQueue(memory: memory, size: 8, at: 0x1_0000)
    let port = remapper.makePort(for: Requester(id: RequesterID(rawValue: 8), busMasterEnable: true))
    var queue = VirtQueue(layout: driver.layout(), features: Self.indirect, port: port, owner: owner)
    driver.submit([.writable(0x10_0000, 1100 * 4096)])
    #expect(try queue.next())
    #expect(try queue.takeSegments(for: .write, limit: .max, during: queue.port.request()) == 1024 * 4096)
    #expect(queue.segments.count == VirtQueue.segmentLimit)
    #expect(try queue.takeSegments(for: .write, limit: .max, during: queue.port.request()) == 76 * 4096)
    #expect(queue.segments.count == 76)
  }

  @Test("reading and writing bytes continues from one buffer in the next")
  func bytesCrossBuffers() throws {
    var (driver, queue) = make()
    memory.store([1, 2, 3], at: 0x100)
    memory.store([4, 5], at: 0x200)
    driver.submit([.readable(0x100, 3), .readable(0x200, 2), .writable(0x300, 1), .writable(0x400, 3)])
    #expect(try queue.next())
    #expect(try queue.takeBytes(4) == 4)
    #expect(Array(queue.bytes[0..<4]) == [1, 2, 3, 4])
    #expect(try queue.takeBytes(4) == 1)
    #expect(queue.bytes[0] == 5)
    #expect(try queue.takeLastByte() == 0x402)
    #expect(try queue.put([7, 8, 9, 10]) == 3)
    #expect(memory.copy(0x300, count: 1) == [7])
    #expect(memory.copy(0x400, count: 3) == [8, 9, 0])
    #expect(try queue.takeLastByte() == nil)
  }

  @Test("serving a random ring ends and never traps", arguments: 0..<40)
  func randomRingsEnd(seed: UInt64) {
    var generator = SeededGenerator(seed: seed)
    let memory = HeapMemory(size: 0x8000)
    let driver = DriverQueue(memory: memory, size: 16, at: 0x1000)
    let port = DirectDMAPort(
      memory: memory, requester: Requester(id: RequesterID(rawValue: 8), busMasterEnable: true))
    for _ in 0..<50 {
      for index in 0..<UInt16(16) {
        driver.writeDescriptor(
          index, address: UInt64.random(in: 0..<0x9000, using: &generator),
          length: UInt32.random(in: 0..<64, using: &generator) << (seed % 2 == 0 ? 0 : 8),
          flags: UInt16.random(in: 0..<8, using: &generator), next: UInt16.random(in: 0..<18, using: &generator))
      }
      memory.storeUInt16(UInt16.random(in: 0...17, using: &generator), at: driver.available + 2)
      for slot in 0..<UInt64(16) {
        memory.storeUInt16(UInt16.random(in: 0...16, using: &generator), at: driver.available + 4 + 2 * slot)
      }
      var queue = VirtQueue(
        layout: driver.layout(), features: [.version1, .indirectDescriptors, .eventIndex], port: port, owner: owner)
      var served = 0
      do {
        while try queue.next() {
          served += 1
          _ = try queue.takeBytes(16)
          while try queue.takeSegments(for: .write, limit: 64, during: queue.port.request()) > 0 {}
          try queue.complete(head: queue.chain.head, written: 1)
          _ = try queue.requestNotifications()
        }
      } catch {}
      #expect(served <= Int(driver.size) * 2)
    }
  }
}
