import Hardware
import PCI
import TestSupport
import Testing

@testable import Devices

@Suite struct VirtioBlockTests {
  private static let read: UInt32 = 0
  private static let write: UInt32 = 1
  private static let flush: UInt32 = 4
  private static let getID: UInt32 = 8
  private static let discard: UInt32 = 11
  private static let writeZeroes: UInt32 = 13

  private static func range(_ sector: UInt64, _ count: UInt32, _ flags: UInt32 = 0) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.append(littleEndian: sector)
    bytes.append(littleEndian: count)
    bytes.append(littleEndian: flags)
    return bytes
  }

  // MARK: Identity

  @Test("the configuration matches byte for byte")
  func configurationByteForByte() throws {
    var options = VirtioBlockParameters()
    options.queueCount = 4
    options.logicalBlockSize = 1024
    options.physicalBlockSize = 4096
    // Of 65 sectors the last is not a whole block.
    let disk = try TestDisk(options, sectors: 65)
    let golden: [UInt8] = [
      64, 0, 0, 0, 0, 0, 0, 0,  // capacity
      0, 0, 0, 0, 254, 0, 0, 0,  // size_max, seg_max
      0, 0, 0, 0, 0, 4, 0, 0,  // geometry, blk_size
      2, 0, 0, 0, 0, 0, 0, 0,  // topology
      0, 0, 4, 0,  // writeback, num_queues
      0, 0, 0x20, 0, 32, 0, 0, 0, 2, 0, 0, 0,  // discard: sectors, ranges, alignment
      0, 0, 2, 0, 32, 0, 0, 0, 1, 0, 0, 0,  // write zeroes: sectors, ranges, may unmap
    ]
    let bytes = try (0..<60).map { UInt8(try disk.driver.read(4, $0, .byte)) }
    #expect(bytes == golden)
    #expect(disk.driver.config(0x00, .doubleword) == 0x1042_1af4)
    #expect(disk.driver.config(0x08, .doubleword) == 0x0100_0001)
  }

  @Test("features depend on the options and the backend")
  func featuresFollowOptionsAndBackend() throws {
    let ring: UInt64 = 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40
    let always: UInt64 = 1 << 2 | 1 << 6 | 1 << 9
    #expect(try TestDisk().driver.offered() == ring | always | 1 << 13 | 1 << 14)
    #expect(try TestDisk(readOnly: true).driver.offered() == ring | always | 1 << 5)
    var options = VirtioBlockParameters()
    options.discard = false
    options.writeZeroes = false
    options.queueCount = 2
    options.physicalBlockSize = 4096
    #expect(try TestDisk(options).driver.offered() == ring | always | 1 << 12 | 1 << 10)
  }

  @Test("each invalid option is refused")
  func optionsAreChecked() {
    func problem(_ change: (inout VirtioBlockParameters) -> Void) -> VirtioBlockParameters.Problem? {
      var options = VirtioBlockParameters()
      change(&options)
      do { try options.validate() } catch { return error }
      return nil
    }
    #expect(problem { _ in } == nil)
    #expect(problem { $0.queueCount = 0 } == .queueCount)
    #expect(problem { $0.queueCount = 257 } == .queueCount)
    #expect(problem { $0.queueSize = 100 } == .queueSize)
    #expect(problem { $0.queueSize = 2048 } == .queueSize)
    #expect(problem { $0.logicalBlockSize = 513 } == .logicalBlockSize)
    #expect(problem { $0.logicalBlockSize = 4 << 20 } == .logicalBlockSize)
    #expect(
      problem {
        $0.logicalBlockSize = 4096
        $0.physicalBlockSize = 512
      } == .physicalBlockSize)
    #expect(problem { $0.transport.vectors = 2049 } == .vectors)
    #expect(problem { $0.serial = "twenty-one characters" } == .serial)
  }

  // MARK: Data

  @Test("a read fills several buffers without a copy")
  func readsIntoSeveralBuffers() throws {
    var disk = try TestDisk()
    let answer = try disk.request(
      Self.read, sector: 3, [.writable(TestDisk.data, 700), .writable(TestDisk.data + 0x1000, 324)])
    #expect(answer?.status == 0)
    #expect(answer?.length == 1025)
    let expected = Array(disk.backend.bytes[3 * 512..<5 * 512])
    #expect(disk.board.memory.copy(TestDisk.data, count: 700) == Array(expected[0..<700]))
    #expect(disk.board.memory.copy(TestDisk.data + 0x1000, count: 324) == Array(expected[700...]))
    // One call has the guest's own memory: there is no copy in between.
    #expect(
      disk.backend.operations == [
        .read(
          1536,
          [
            PhysicalSegment(address: TestDisk.data, count: 700),
            PhysicalSegment(address: TestDisk.data + 0x1000, count: 324),
          ])
      ])
  }

  @Test("writes and flushes reach the backend")
  func writesAndFlushes() throws {
    var disk = try TestDisk()
    let bytes = [UInt8](repeating: 0xa5, count: 1024)
    disk.board.memory.store(bytes, at: TestDisk.data)
    let answer = try disk.request(Self.write, sector: 62, [.readable(TestDisk.data, 1024)])
    #expect(answer?.status == 0)
    #expect(answer?.length == 1)
    #expect(Array(disk.backend.bytes[62 * 512..<64 * 512]) == bytes)
    #expect(try disk.request(Self.flush)?.status == 0)
    #expect(disk.backend.operations.last == .flush)
    #expect(disk.backend.operations.count == 2)
  }

  @Test("a driver that cannot flush gets a write-through disk")
  func aDriverThatCannotFlushGetsAWriteThroughDisk() throws {
    var disk = try TestDisk(features: 1 << 32 | 1 << 14)
    try disk.request(Self.write, [.readable(TestDisk.data, 512)])
    disk.board.memory.store(Self.range(0, 1), at: TestDisk.data)
    try disk.request(Self.writeZeroes, [.readable(TestDisk.data, 16)])
    #expect(disk.backend.operations.filter { $0 == .flush }.count == 2)
    #expect(disk.backend.operations.last == .flush)
  }

  @Test("a header may have two parts, and the status may end the data's buffer")
  func headersAndStatusMayLieAnywhere() throws {
    var disk = try TestDisk()
    disk.prepare(Self.read, 1)
    // The header has two parts, and the status is at the end of the data.
    disk.queues[0].submit([
      .readable(TestDisk.header, 5), .readable(TestDisk.header + 5, 11), .writable(TestDisk.data, 513),
    ])
    try disk.driver.notify(0)
    #expect(disk.queues[0].takeUsed() == [.init(id: 0, length: 513)])
    #expect(disk.board.memory.copy(TestDisk.data, count: 513) == Array(disk.backend.bytes[512..<1024]) + [0])
  }

  @Test("an indirect request is served")
  func indirectRequests() throws {
    var disk = try TestDisk()
    disk.prepare(Self.read, 0)
    let parts = (0..<UInt64(128)).map { DriverQueue.Buffer.writable(TestDisk.data + 0x1000 * $0, 4) }
    disk.queues[0].submit(
      [.readable(TestDisk.header, 16)] + parts + [.writable(TestDisk.status, 1)], indirectAt: 0x9_0000)
    try disk.driver.notify(0)
    #expect(disk.statusByte == 0)
    #expect(disk.queues[0].takeUsed() == [.init(id: 0, length: 513)])
    #expect(disk.board.memory.copy(TestDisk.data + 0x7f000, count: 4) == Array(disk.backend.bytes[508..<512]))
  }

  @Test("a large request is served in pieces")
  func largeRequestsComeInPieces() throws {
    var disk = try TestDisk(sectors: 10240)
    // 5 MiB in twenty descriptors over the same 256 KiB.
    let parts = (0..<20).map { _ in DriverQueue.Buffer.writable(TestDisk.data, 256 << 10) }
    let answer = try disk.request(Self.read, sector: 0, parts)
    #expect(answer?.status == 0)
    #expect(answer?.length == 5_242_881)
    let offsets = disk.backend.operations.map { operation -> UInt64? in
      if case .read(let offset, _) = operation { offset } else { nil }
    }
    #expect(offsets == [0, 4 << 20])
    #expect(
      disk.board.memory.copy(TestDisk.data, count: 256 << 10) == Array(disk.backend.bytes[19 << 18..<20 << 18]))
  }

  @Test("the disk returns its serial, cut to the buffer")
  func identifiesItself() throws {
    var options = VirtioBlockParameters()
    options.serial = "nest-0001"
    var disk = try TestDisk(options)
    disk.board.memory.store([UInt8](repeating: 0xff, count: 32), at: TestDisk.data)
    let answer = try disk.request(Self.getID, [.writable(TestDisk.data, 24)])
    #expect(answer?.status == 0)
    // The last four bytes before the status were not written.
    #expect(answer?.length == 20)
    #expect(
      disk.board.memory.copy(TestDisk.data, count: 24)
        == Array("nest-0001".utf8) + [UInt8](repeating: 0, count: 11) + [0xff, 0xff, 0xff, 0xff])
    #expect(try disk.request(Self.getID, [.writable(TestDisk.data, 4)])?.length == 5)
  }

  // MARK: Discard and write zeroes

  @Test("ranges are discarded and zeroed")
  func discardsAndZeroesRanges() throws {
    var disk = try TestDisk()
    disk.board.memory.store(Self.range(1, 2) + Self.range(60, 4) + Self.range(5, 0), at: TestDisk.data)
    #expect(try disk.request(Self.discard, [.readable(TestDisk.data, 48)])?.status == 0)
    #expect(disk.backend.operations == [.discard(512..<1536), .discard(30720..<32768)])
    disk.board.memory.store(Self.range(0, 1) + Self.range(8, 1, 1), at: TestDisk.data)
    #expect(
      try disk.request(Self.writeZeroes, [.readable(TestDisk.data, 20), .readable(TestDisk.data + 20, 12)])?.status == 0
    )
    #expect(
      disk.backend.operations.suffix(2) == [
        .writeZeroes(0..<512, mayUnmap: false), .writeZeroes(4096..<4608, mayUnmap: true),
      ])
    #expect(disk.backend.bytes[4096..<4608].allSatisfy { $0 == 0 })
  }

  @Test("a bad range changes nothing")
  func badRangesChangeNothing() throws {
    var disk = try TestDisk()
    let cases: [(UInt32, [UInt8], UInt8)] = [
      (Self.discard, Self.range(0, 1) + Self.range(63, 2), 1),
      (Self.discard, Self.range(.max, 1), 1),
      (Self.discard, Self.range(0, .max), 1),
      (Self.discard, Self.range(0, 1, 1), 2),
      (Self.discard, [], 1),
      (Self.discard, Array(Self.range(0, 1)[0..<12]), 1),
      (Self.writeZeroes, Self.range(0, 1) + Self.range(0, 1, 2), 2),
      (Self.writeZeroes, Self.range(0x8000_0000_0000_0000, 2), 1),
      (Self.writeZeroes, (0..<33).flatMap { Self.range($0, 1) }, 1),
    ]
    for (kind, bytes, status) in cases {
      disk.board.memory.store(bytes, at: TestDisk.data)
      let buffers: [DriverQueue.Buffer] = bytes.isEmpty ? [] : [.readable(TestDisk.data, bytes.count)]
      #expect(try disk.request(kind, buffers)?.status == status)
    }
    #expect(disk.backend.operations.isEmpty)
  }

  @Test("a command that was not negotiated is unsupported")
  func whatWasNotNegotiatedIsUnsupported() throws {
    var disk = try TestDisk(features: 1 << 32)
    disk.board.memory.store(Self.range(0, 1), at: TestDisk.data)
    #expect(try disk.request(Self.discard, [.readable(TestDisk.data, 16)])?.status == 2)
    #expect(try disk.request(Self.writeZeroes, [.readable(TestDisk.data, 16)])?.status == 2)
    #expect(try disk.request(99, [.writable(TestDisk.data, 512)])?.status == 2)
    #expect(disk.backend.operations.isEmpty)
  }

  // MARK: Refusals

  @Test(
    "a request outside the disk fails",
    arguments: [
      (64, 512), (63, 1024), (UInt64.max, 512), (0x8000_0000_0000_0000, 512), (0, 511), (0, 513), (1 << 55, 0),
    ])
  func requestsOutsideTheDiskFail(sector: UInt64, count: Int) throws {
    var disk = try TestDisk()
    #expect(try disk.request(Self.read, sector: sector, [.writable(TestDisk.data, count)])?.status == 1)
    #expect(
      try disk.request(Self.read, sector: sector, [.writable(TestDisk.data, count)])?.length == (count == 0 ? 1 : 0))
    #expect(try disk.request(Self.write, sector: sector, [.readable(TestDisk.data, count)])?.status == 1)
    #expect(disk.backend.operations.isEmpty)
    #expect(try disk.driver.status == 0xf)
  }

  @Test("a request for a part of a logical block is an error")
  func requestsKeepToLogicalBlocks() throws {
    var options = VirtioBlockParameters()
    options.logicalBlockSize = 4096
    var disk = try TestDisk(options)
    #expect(try disk.request(Self.read, sector: 1, [.writable(TestDisk.data, 4096)])?.status == 1)
    #expect(try disk.request(Self.read, sector: 8, [.writable(TestDisk.data, 512)])?.status == 1)
    #expect(try disk.request(Self.read, sector: 8, [.writable(TestDisk.data, 4096)])?.status == 0)
  }

  /// virtio 1.2, 2.7.8.2: "at least len bytes", beginning at the first device-writable buffer.
  @Test("the used length of a failed request covers only bytes that were written")
  func usedLengthOfFailures() throws {
    var disk = try TestDisk(sectors: 10240)
    let backend = disk.backend
    let parts = (0..<20).map { _ in DriverQueue.Buffer.writable(TestDisk.data, 256 << 10) }
    backend.fail(with: .inputOutput)
    #expect(try disk.request(Self.read, parts)?.length == 0)
    // Without data to write, the status is the first byte and counts.
    #expect(try disk.request(Self.write, [.readable(TestDisk.data, 512)])?.length == 1)
    #expect(try disk.request(Self.flush)?.length == 1)
    // A flush writes nothing into its data buffer.
    backend.fail(with: nil)
    #expect(try disk.request(Self.flush, [.writable(TestDisk.data, 512)])?.length == 0)
    // The second piece of 4 MiB fails.
    let reads = SharedInteger()
    backend.onRead {
      reads.increment()
      if reads.value == 2 { backend.fail(with: .inputOutput) }
    }
    let answer = try disk.request(Self.read, parts)
    #expect(answer?.status == 1)
    #expect(answer?.length == 4 << 20)
  }

  @Test("a read-only disk is not written")
  func aReadOnlyDiskIsNotWritten() throws {
    var disk = try TestDisk(readOnly: true)
    #expect(try disk.request(Self.write, [.readable(TestDisk.data, 512)])?.status == 1)
    #expect(disk.backend.operations.isEmpty)
    #expect(try disk.request(Self.read, [.writable(TestDisk.data, 512)])?.status == 0)
  }

  @Test("errors of the backend become statuses")
  func errorsOfTheBackendAreStatuses() throws {
    var disk = try TestDisk()
    for (error, status): (BlockError, UInt8) in [
      (.inputOutput, 1), (.noSpace, 1), (.readOnly, 1), (.unsupported, 2),
    ] {
      disk.backend.fail(with: error)
      #expect(try disk.request(Self.read, [.writable(TestDisk.data, 512)])?.status == status)
      #expect(try disk.request(Self.write, [.readable(TestDisk.data, 512)])?.status == status)
      #expect(try disk.request(Self.flush)?.status == status)
    }
    disk.backend.fail(with: nil)
    #expect(try disk.request(Self.read, [.writable(TestDisk.data, 512)])?.status == 0)
  }

  @Test("the device asks for a reset if a chain is not a request")
  func whatIsNoRequestAsksForAReset() throws {
    for buffers: [DriverQueue.Buffer] in [
      [.readable(TestDisk.header, 15), .writable(TestDisk.status, 1)],
      [.readable(TestDisk.header, 16)],
      [.writable(TestDisk.status, 1)],
      [.readable(0xffff_0000, 16), .writable(TestDisk.status, 1)],
      [.readable(TestDisk.header, 16), .writable(.max, 1)],
    ] {
      var disk = try TestDisk()
      disk.prepare(Self.flush, 0)
      disk.queues[0].submit(buffers)
      try disk.driver.notify(0)
      #expect(try disk.driver.status == 0x4f)
      #expect(disk.queues[0].takeUsed() == [])
    }
  }

  @Test("data outside RAM is an error")
  func dataOutsideRAMIsAnError() throws {
    var disk = try TestDisk()
    #expect(try disk.request(Self.read, [.writable(0x4000_0000, 512)])?.status == 1)
    #expect(try disk.request(Self.write, [.readable(.max - 100, 512)])?.status == 1)
    #expect(disk.backend.operations.isEmpty)
  }

  // MARK: Queues

  @Test("each of several queues has its own vector and worker")
  func queuesWorkSideBySide() throws {
    var options = VirtioBlockParameters()
    options.queueCount = 3
    var disk = try TestDisk(options)
    disk.driver.enableMSIX(vectors: 4)
    for index in [2, 0, 1] {
      #expect(
        try disk.request(Self.read, sector: UInt64(index), [.writable(TestDisk.data, 512)], queue: index)?.status == 0)
    }
    #expect(disk.driver.messages == [0x42, 0x40, 0x41])
    #expect(disk.board.workers.workers.map(\.name) == ["virtio-blk 0", "virtio-blk 1", "virtio-blk 2"])
  }

  @Test("when the device stops on an error, a request in progress ends before its next piece")
  func aResetEndsARequestBetweenItsPieces() throws {
    var options = VirtioBlockParameters()
    options.queueCount = 2
    var disk = try TestDisk(options, sectors: 10240)
    var other = disk.queues[1]
    let driver = disk.driver
    other.offer(0x4000)
    // While the first piece is read, the other queue breaks the device.
    disk.backend.onRead { [weak pci = disk.pci] in
      pci?.writeRegion(bar: 4, offset: 0x3004, width: .word, value: 1)
    }
    let parts = (0..<20).map { _ in DriverQueue.Buffer.writable(TestDisk.data, 256 << 10) }
    #expect(try disk.request(Self.read, parts) == nil)
    #expect(disk.backend.operations.count == 1)
    #expect(disk.statusByte == 0xee)
    #expect(try driver.status == 0x4f)
  }

  @Test("a new size interrupts the driver and changes the capacity")
  func tellsOfANewSize() throws {
    let disk = try TestDisk()
    _ = try disk.driver.read(3, 0, .byte)
    disk.backend.resize(to: 128 * 512)
    disk.block.capacityChanged()
    #expect(try disk.driver.read(3, 0, .byte) == 2)
    #expect(try disk.driver.read(4, 0, .quadword) == 128)
  }
}
