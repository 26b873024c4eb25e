import Hardware
import PCI
import TestSupport
import Testing

@testable import Devices

/// Transfers across the top of the address space must not reach what a guest maps at address 0.
@Suite("The top of the address space")
struct AddressSpaceTopTests {
  /// The last page of the address space, and the addresses of the last and the first page in RAM.
  private static let top: UInt64 = 0xffff_ffff_ffff_f000
  private static let topPhysical: UInt64 = 0x30_0000
  private static let bottomPhysical: UInt64 = 0x31_0000
  private static let marks = [UInt8](repeating: 0xaa, count: 4096)

  private let remapper: PageRemapper

  init() {
    remapper = PageRemapper(memory: HeapMemory(size: 4 << 20))
    remapper.map(Self.top, to: Self.topPhysical, count: 4096)
    remapper.map(0, to: Self.bottomPhysical, count: 4096)
    for physical in [Self.topPhysical, Self.bottomPhysical] { remapper.memory.store(Self.marks, at: physical) }
  }

  private func expectUntouched() {
    let isUntouched = [Self.topPhysical, Self.bottomPhysical].map {
      remapper.memory.copy($0, count: 4096) == Self.marks
    }
    #expect(isUntouched == [true, true])
  }

  private func disk() throws -> TestDisk {
    let shift: UInt64 = 0x7_0000_0000
    remapper.map(shift, to: 0, count: 0x30_0000)
    var options = VirtioBlockParameters()
    options.transport.iommuPlatform = true
    return try TestDisk(options, remapper: remapper, offset: shift)
  }

  @Test(
    "a disk refuses a buffer across the top as an error of the request",
    arguments: [(top, 8192), (top + 0xe00, 1024), (.max, 512), (top + 0x800, 0x80_0800)] as [(UInt64, Int)])
  func diskBuffers(address: UInt64, count: Int) throws {
    var disk = try disk()
    // A read, and a query of the disk's name.
    for kind: UInt32 in [0, 8] {
      disk.prepare(kind, 0)
      disk.queues[0].submit([
        .readable(TestDisk.header + disk.offset, 16), .writable(address, count),
        .writable(TestDisk.status + disk.offset, 1),
      ])
      try disk.driver.notify(0)
      #expect(disk.queues[0].takeUsed().map(\.length) == [0])
      #expect(disk.statusByte == 1)
      expectUntouched()
    }
    disk.prepare(1, 0)
    disk.queues[0].submit([
      .readable(TestDisk.header + disk.offset, 16), .readable(address, count),
      .writable(TestDisk.status + disk.offset, 1),
    ])
    try disk.driver.notify(0)
    #expect(disk.statusByte == 1)
    #expect(disk.backend.operations.isEmpty)
    #expect(try disk.request(0, [.writable(TestDisk.data, 512)])?.status == 0)
  }

  @Test("a buffer that ends with the last byte of the address space is served")
  func lastByte() throws {
    var disk = try disk()
    disk.prepare(0, 0)
    disk.queues[0].submit([
      .readable(TestDisk.header + disk.offset, 16), .writable(Self.top + 0xe00, 512),
      .writable(TestDisk.status + disk.offset, 1),
    ])
    try disk.driver.notify(0)
    #expect(disk.statusByte == 0)
    #expect(remapper.memory.copy(Self.topPhysical + 0xe00, count: 512) == Array(disk.backend.bytes[..<512]))
  }

  @Test("a disk asks for a reset if a request's header or status lies across the top")
  func diskHeaders() throws {
    for isHeader in [true, false] {
      var disk = try disk()
      disk.prepare(4, 0)
      disk.queues[0].submit([
        .readable(isHeader ? .max - 7 : TestDisk.header + disk.offset, 16),
        .writable(isHeader ? TestDisk.status + disk.offset : .max, isHeader ? 1 : 2),
      ])
      try disk.driver.notify(0)
      #expect(try disk.driver.status == 0x4f)
      expectUntouched()
    }
  }

  @Test("a ring across the top does not continue at address 0")
  func rings() throws {
    for area in ["descriptors", "driver", "device"] {
      remapper.memory.store([UInt8](repeating: 0, count: 4096), at: Self.topPhysical)
      remapper.memory.store([UInt8](repeating: 0, count: 4096), at: Self.bottomPhysical)
      remapper.map(0x10_0000, to: 0x10_0000, count: 0x4000)
      var layout = VirtQueue.Layout(
        size: 8, descriptorArea: 0x10_0000, driverArea: 0x10_1000, deviceArea: 0x10_2000)
      // The first descriptor, or flags and index, are below the top; the rest would be at 0.
      switch area {
      case "descriptors": layout.descriptorArea = Self.top + 0xff0
      case "driver": layout.driverArea = Self.top + 0xffc
      default: layout.deviceArea = Self.top + 0xffc
      }
      let memory = remapper.memory
      let descriptors = area == "descriptors" ? Self.bottomPhysical : 0x10_0010
      for descriptor in [descriptors, 0x10_0010] {
        memory.storeUInt64(0x10_3000, at: descriptor)
        memory.storeUInt64(0x2_0000_0010, at: descriptor + 8)
      }
      // Head 1.
      let available = area == "driver" ? Self.topPhysical + 0xffc : 0x10_1000
      memory.storeUInt16(1, at: area == "driver" ? Self.bottomPhysical : available + 4)
      memory.storeUInt16(1, at: available + 2)
      let before = memory.copy(Self.bottomPhysical, count: 4096)
      let owner = RunningQueue()
      let port = remapper.makePort(for: Requester(id: RequesterID(rawValue: 8), busMasterEnable: true))
      var queue = VirtQueue(layout: layout, features: [.version1], port: port, owner: owner)
      #expect(throws: VirtQueueError.memory(.notMemory), "\(area)") {
        if try queue.next() { try queue.complete(head: 1, written: 0) }
      }
      let isUntouched = memory.copy(Self.bottomPhysical, count: 4096) == before
      #expect(isUntouched, "\(area)")
    }
  }

  private final class RunningQueue: VirtQueueOwner {
    var isRunning: Bool { true }
    func signalUsed() {}
  }

  @Test("edu moves nothing across the top, in either direction")
  func edu() {
    let board = TestBoard(remapper: remapper)
    let device = Edu(
      mask: .max, environment: board.environment, address: RequesterID(bus: 0, device: 3, function: 0))
    let edu = TestFunction(device.function, on: board)
    func transfer(from source: UInt64, to destination: UInt64, count: UInt64, command: UInt64) {
      edu.write(0x80, source, .quadword)
      edu.write(0x88, destination, .quadword)
      edu.write(0x90, count, .quadword)
      edu.write(0x98, command, .quadword)
    }
    transfer(from: 0x40000, to: .max - 0x1f, count: 64, command: 7)
    expectUntouched()
    #expect(edu.read(0x24) == 0x100, "it completes")
    // Both transfers into the buffer leave it zero, without the marks.
    transfer(from: 0, to: 0x40000, count: 64, command: 1)
    transfer(from: .max - 0x1f, to: 0x40000, count: 64, command: 1)
    transfer(from: 0x40000, to: Self.top, count: 64, command: 3)
    #expect(remapper.memory.copy(Self.topPhysical, count: 64) == [UInt8](repeating: 0, count: 64))
    transfer(from: 0x40000, to: .max - 0x1f, count: 32, command: 3)
    #expect(remapper.memory.copy(Self.topPhysical + 0xfe0, count: 32) == [UInt8](repeating: 0, count: 32))
  }

  @Test("iommu-testdev refuses each of its addresses across the top")
  func testDevice() {
    let board = TestBoard(remapper: remapper)
    let device = IOMMUTestDevice(
      environment: board.environment, address: RequesterID(bus: 0, device: 3, function: 0))
    let function = TestFunction(device.function, on: board)
    func run(to address: UInt64, expectedAt physical: UInt64) -> UInt64? {
      function.write(0x04, address, .quadword)
      function.write(0x1c, physical, .quadword)
      function.write(0x0c, 0x2000)
      function.write(0x14, 1)
      _ = function.read(0)
      return function.read(0x10)
    }
    // The transfer has parts of 4 KiB, the second of which would be at 0.
    #expect(run(to: Self.top, expectedAt: Self.topPhysical) == 0xdead_0002)
    expectUntouched()
    remapper.map(0x10_0000, to: 0x10_0000, count: 0x2000)
    #expect(run(to: 0x10_0000, expectedAt: Self.top) == 0xdead_0003)
  }
}
