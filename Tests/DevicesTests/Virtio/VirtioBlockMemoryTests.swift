import Hardware
import PCI
import TestSupport
import Testing

@testable import Devices

/// Tests a disk whose memory is translated, refused or random.
@Suite struct VirtioBlockMemoryTests {
  private static let shift: UInt64 = 0x7_0000_0000

  private func translated() throws -> (PageRemapper, TestDisk) {
    let remapper = PageRemapper(memory: HeapMemory(size: 4 << 20))
    remapper.map(Self.shift, to: 0, count: 4 << 20)
    var options = VirtioBlockParameters()
    options.transport.iommuPlatform = true
    return (remapper, try TestDisk(options, remapper: remapper, offset: Self.shift))
  }

  @Test("rings and data are translated")
  func ringsAndDataAreTranslated() throws {
    var (remapper, disk) = try translated()
    // Two pages lie in reverse order in memory.
    remapper.map(Self.shift + TestDisk.data, to: TestDisk.data + 0x1000, count: 4096)
    remapper.map(Self.shift + TestDisk.data + 0x1000, to: TestDisk.data, count: 4096)
    #expect(try disk.request(0, [.writable(TestDisk.data, 8192)])?.status == 0)
    #expect(disk.board.memory.copy(TestDisk.data + 0x1000, count: 4096) == Array(disk.backend.bytes[0..<4096]))
    #expect(disk.board.memory.copy(TestDisk.data, count: 4096) == Array(disk.backend.bytes[4096..<8192]))
    #expect(remapper.refused == [])
  }

  @Test("refused data is an error of the request")
  func refusedDataIsAnErrorOfTheRequest() throws {
    var (remapper, disk) = try translated()
    remapper.unmap(Self.shift + TestDisk.data + 0x1000)
    let answer = try disk.request(0, [.writable(TestDisk.data, 8192)])
    #expect(answer?.status == 1)
    #expect(answer?.length == 0, "the first page was not written either")
    #expect(remapper.refused == [Self.shift + TestDisk.data + 0x1000])
    #expect(disk.backend.operations.isEmpty)
    #expect(try disk.driver.status == 0xf)
  }

  @Test("the device asks for a reset if a ring is refused")
  func aRefusedRingAsksForAReset() throws {
    var (remapper, disk) = try translated()
    remapper.unmap(Self.shift + disk.queues[0].available)
    #expect(try disk.request(4) == nil)
    #expect(try disk.driver.status == 0x4f)
    #expect(remapper.refused == [Self.shift + disk.queues[0].available + 2])
  }

  @Test("without iommu_platform addresses are physical")
  func withoutIOMMUPlatformAddressesArePhysical() throws {
    let remapper = PageRemapper(memory: HeapMemory(size: 4 << 20))
    var disk = try TestDisk(remapper: remapper)
    #expect(try disk.request(0, [.writable(TestDisk.data, 512)])?.status == 0)
    #expect(remapper.refused == [])
  }

  /// Serves random rings and request headers, with many notifications and resets: nothing traps, no byte outside the
  /// RAM of rings and buffers is accessed, and the device works after each reset.
  @Test("random memory never traps", arguments: 0..<12)
  func randomMemoryNeverTraps(seed: UInt64) throws {
    var generator = SeededGenerator(seed: seed)
    let board = TestBoard(memorySize: 0x2_0000)
    let backend = MemoryBackend(memory: board.memory, content: [UInt8](repeating: 1, count: 32 << 10))
    var options = VirtioBlockParameters()
    options.queueSize = 16
    let pci = VirtioPCI(
      device: try VirtioBlock(options: options, backend: backend), options: options.transport,
      environment: board.environment, address: RequesterID(bus: 0, device: 2, function: 0))
    board.plug(pci)
    let driver = TestDriver(pci, on: board)
    var completed = 0
    board.memory.store((0..<0x5000).map { _ in UInt8.random(in: 0...255, using: &generator) }, at: 0)
    for _ in 0..<60 {
      try driver.negotiate()
      var queue = try driver.setUp(queue: 0, at: 0x1000)
      board.memory.store([UInt8](repeating: 0, count: 4), at: queue.available)
      board.memory.store([UInt8](repeating: 0, count: 4), at: queue.used)
      for index in 0..<UInt16(16) {
        let address = UInt64.random(in: 0..<0x2_2000, using: &generator)
        if Bool.random(using: &generator) {
          board.memory.store([[0, 1, 4, 8, 11, 13].randomElement(using: &generator)!, 0, 0, 0], at: address)
          board.memory.store([UInt8](repeating: 0, count: 7), at: address + 9)
        }
        queue.writeDescriptor(
          index, address: address, length: [1, 16, 16, 512, 513, 4096].randomElement(using: &generator)!,
          flags: UInt16.random(in: 0..<5, using: &generator), next: UInt16.random(in: 0..<17, using: &generator))
      }
      try driver.start()
      // A valid request comes first; otherwise most rounds would end at once.
      board.memory.store([4] + [UInt8](repeating: 0, count: 15), at: 0x800)
      queue.writeDescriptor(14, address: 0x800, length: 16, flags: 1, next: 15)
      queue.writeDescriptor(15, address: 0x900, length: 1, flags: 2)
      queue.offer(14)
      for _ in 0..<8 { queue.offer(UInt16.random(in: 0..<16, using: &generator)) }
      try driver.notify(0)
      completed += queue.takeUsed().count
    }
    #expect(completed > 60)
    board.memory.store([UInt8](repeating: 0, count: 0x5000), at: 0)
    try driver.negotiate()
    var queue = try driver.setUp(queue: 0, at: 0x1000)
    try driver.start()
    queue.submit([.readable(0x800, 16), .writable(0x6000, 512), .writable(0x900, 1)])
    try driver.notify(0)
    #expect(queue.takeUsed() == [.init(id: 0, length: 513)])
  }
}
