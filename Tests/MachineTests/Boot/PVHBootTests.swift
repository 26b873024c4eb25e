import Hardware
import Testing

@testable import Machine

@Suite struct PVHBootTests {
  private func enter(_ bench: BootBench, _ elf: SyntheticELF = .pvh) throws -> ProtectedModeEntry {
    guard case .protectedMode(let entry) = try bench.load(elf.bytes) else {
      throw BootError.unknownFormat(size: 0)
    }
    return entry
  }

  @Test func `segments lie at their physical addresses, and their memory beyond the file data is zero`() throws {
    let bench = BootBench(size: 8 << 20)
    #expect(bench.memory.store([UInt8](repeating: 0xff, count: 8 << 20), at: 0))
    let entry = try enter(bench)
    #expect(entry.instructionPointer == 0x10_0040)
    #expect(entry.accumulator == 0)
    #expect(bench.bytes(0x10_0000, 0x1800) == pattern(0x1800))
    #expect(bench.bytes(0x20_0000, 0x700) == pattern(0x700, seed: 9))
    #expect(bench.bytes(0x20_0700, 0x1_2345 - 0x700).allSatisfy { $0 == 0 })
    #expect(bench.bytes(0x20_0000 + 0x1_2345, 1) == [0xff])
  }

  @Test func `the start information points to everything that the kernel receives`() throws {
    var bench = BootBench(size: 8 << 20)
    bench.initialRAMDisk = cpio(4097)
    bench.layout.highRAMEnd = 0x1_4000_0000
    let start = UInt64(try enter(bench).startInformation)
    #expect(bench.word(start) == 0x336e_c578)
    #expect(bench.word(start + 4) == 1)
    #expect(bench.word(start + 8) == 0)
    #expect(bench.word(start + 12) == 1)
    let module = bench.long(start + 16)
    #expect(bench.text(bench.long(start + 24)) == "console=ttyS0")
    #expect(bench.long(start + 32) == 0xe_0000)
    let map = bench.long(start + 40)
    #expect(bench.word(start + 48) == 6)
    #expect(bench.word(start + 52) == 0)

    #expect([0, 8, 16, 24].map { bench.long(module + $0) } == [0x7f_e000, 4097, 0, 0])
    #expect(bench.bytes(0x7f_e000, 4097) == cpio(4097))
    let regions = (0..<6).map { index in
      [0, 8, 16].map { bench.long(map + 24 * UInt64(index) + $0) }
    }
    #expect(
      regions == [
        [0, 0x9_fc00, 1], [0x9_fc00, 0x400, 2], [0xe_0000, 0x2_0000, 2], [0x10_0000, 0x70_0000, 1],
        [0xb000_0000, 0x1000_0000, 2], [0x1_0000_0000, 0x4000_0000, 1],
      ])
  }

  @Test func `without an initrd there is no module`() throws {
    let bench = BootBench(size: 8 << 20)
    let start = UInt64(try enter(bench).startInformation)
    #expect(bench.word(start + 12) == 0)
    #expect(bench.long(start + 16) == 0)
  }

  @Test func `an entry note of four bytes is accepted`() throws {
    var elf = SyntheticELF.pvh
    var entry: [UInt8] = []
    entry.append(littleEndian: UInt32(0x10_0044))
    elf.segments[2].content = SyntheticELF.note(owner: "Xen", type: 18, content: entry)
    #expect(try enter(BootBench(size: 8 << 20), elf).instructionPointer == 0x10_0044)
  }

  @Test func `boot data does not overlap a kernel in low memory`() throws {
    let bench = BootBench(size: 8 << 20)
    var elf = SyntheticELF.pvh
    elf.segments[1].physicalAddress = 0x6000
    elf.segments[1].memorySize = 0x4000
    let start = try enter(bench, elf).startInformation
    #expect(start == 0xa000)
    #expect(bench.bytes(0x6000, 0x700) == pattern(0x700, seed: 9))
  }

  @Test func `each kernel that cannot be started is refused with its reason`() {
    let bench = BootBench(size: 8 << 20)
    func refusal(_ change: (inout SyntheticELF) -> Void) -> BootError? {
      var elf = SyntheticELF.pvh
      change(&elf)
      return bench.refusal(elf.bytes)
    }
    let size = UInt64(SyntheticELF.pvh.bytes.count)
    #expect(refusal { $0.segments.removeLast() } == .noEntryNote)
    // The second note has another type, then another owner.
    #expect(refusal { $0.segments[2].content[0x20] = 17 } == .noEntryNote)
    #expect(refusal { $0.segments[2].content[0x24] = 0x78 } == .noEntryNote)
    #expect(refusal { $0.segments.removeFirst(2) } == .noSegments)
    #expect(refusal { $0.segments = [] } == .noSegments)
    #expect(
      refusal { $0.machine = 183 } == .elfUnsupported(elfClass: 2, byteOrder: 1, machine: 183, type: 2))
    #expect(refusal { $0.type = 1 } == .elfUnsupported(elfClass: 2, byteOrder: 1, machine: 62, type: 1))
    #expect(refusal { $0.byteOrder = 2 } == .elfUnsupported(elfClass: 2, byteOrder: 2, machine: 62, type: 2))
    #expect(refusal { $0.elfClass = 3 } == .elfUnsupported(elfClass: 3, byteOrder: 1, machine: 62, type: 2))
    #expect(refusal { $0.programHeaderSize = 32 } == .programHeaderSizeInvalid(32))
    #expect(
      refusal { $0.programHeaderCount = 0xffff }
        == .truncated(.kernel, .programHeaders, end: 64 + 56 * 0xffff, size: size))
    #expect(
      refusal { $0.segments[1].fileSize = 0x1_2346 }
        == .segmentInvalid(index: 1, address: 0x20_0000, fileSize: 0x1_2346, memorySize: 0x1_2345))
    #expect(
      refusal { $0.segments[1].physicalAddress = .max }
        == .segmentInvalid(index: 1, address: .max, fileSize: 0x700, memorySize: 0x1_2345))
    #expect(
      refusal { $0.segments[1].fileOffset = .max - 3 } == .truncated(.kernel, .segment, end: nil, size: size))
    #expect(
      refusal { $0.segments[1].fileOffset = size - 0x6ff }
        == .truncated(.kernel, .segment, end: size + 1, size: size))
    #expect(
      refusal { $0.segments[1].physicalAddress = 0x10_1000 }
        == .segmentsOverlap(index: 1, address: 0x10_1000, memorySize: 0x1_2345))
    #expect(
      refusal { $0.segments[1].memorySize = 0x60_0001 }
        == .kernelDoesNotFit(address: 0x20_0000, size: 0x60_0001, memoryEnd: 8 << 20))
    #expect(
      refusal { $0.segments[1].physicalAddress = 0xa_0000 }
        == .kernelDoesNotFit(address: 0xa_0000, size: 0x1_2345, memoryEnd: 8 << 20))
    #expect(
      refusal { $0.segments[0].physicalAddress = 0x30_0000 } == .entryOutsideKernel(entry: 0x10_0040))
    #expect(refusal { $0.segments[2].fileSize = 2 << 20 } == .notesTooLarge(size: 2 << 20))
    #expect(refusal { $0.segments[2].content[4] = 0xf0 } == .noteInvalid(offset: 0))
    #expect(
      refusal { $0.segments[2].content.replaceSubrange(0..<4, with: [255, 255, 255, 255]) } == .noteInvalid(offset: 0))
  }

  @Test func `an entry beyond 4 GiB is refused`() {
    var elf = SyntheticELF.pvh
    var entry: [UInt8] = []
    entry.append(littleEndian: UInt64(0x1_0010_0040))
    elf.segments[2].content = SyntheticELF.note(owner: "Xen", type: 18, content: entry)
    #expect(BootBench(size: 8 << 20).refusal(elf.bytes) == .entryOutsideKernel(entry: 0x1_0010_0040))
  }
}
