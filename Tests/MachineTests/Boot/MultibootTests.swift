import Hardware
import Testing

@testable import Machine

@Suite struct MultibootTests {
  private func enter(_ bench: BootBench, _ kernel: [UInt8]) throws -> ProtectedModeEntry {
    guard case .protectedMode(let entry) = try bench.load(kernel) else {
      throw BootError.unknownFormat(size: 0)
    }
    return entry
  }

  @Test(arguments: [false, true]) func `an ELF kernel of either class starts at its physical entry`(is64Bit: Bool)
    throws
  {
    let bench = BootBench(size: 8 << 20)
    let elf = SyntheticMultiboot.elf(is64Bit: is64Bit)
    #expect(bench.memory.store([UInt8](repeating: 0xff, count: 0x4000), at: 0x10_0000))
    let entry = try enter(bench, elf.bytes)
    #expect(entry.instructionPointer == 0x10_0080)
    #expect(entry.accumulator == 0x2bad_b002)
    let content = elf.segments[0].content
    #expect(bench.bytes(0x10_0000, content.count) == content)
    #expect(bench.bytes(0x10_0000 + UInt64(content.count), 0x3000 - content.count).allSatisfy { $0 == 0 })
    #expect(bench.bytes(0x10_3000, 1) == [0xff])
  }

  @Test func `an entry point that is already physical is kept`() throws {
    var elf = SyntheticMultiboot.elf(is64Bit: false)
    elf.entry = 0x10_0010
    #expect(try enter(BootBench(size: 8 << 20), elf.bytes).instructionPointer == 0x10_0010)
  }

  @Test func `the boot information points to everything that the kernel receives`() throws {
    var bench = BootBench(size: 8 << 20)
    bench.initialRAMDisk = [1, 2, 3]
    let information = UInt64(try enter(bench, SyntheticMultiboot.elf(is64Bit: false).bytes).startInformation)
    func field(_ offset: UInt64) -> UInt64 { UInt64(bench.word(information + offset)) }
    #expect(field(0) == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9)
    #expect(field(4) == 639)
    #expect(field(8) == 7 << 10)
    #expect(bench.text(field(16)) == "kernel.bin console=ttyS0")
    #expect(bench.text(field(64)) == "Nestling")

    // A module may have any content.
    #expect(field(20) == 1)
    let module = field(24)
    #expect([0, 4, 12].map { bench.word(module + $0) } == [0x7f_f000, 0x7f_f003, 0])
    #expect(bench.text(UInt64(bench.word(module + 8))) == "disk.img")
    #expect(bench.bytes(0x7f_f000, 3) == [1, 2, 3])

    let map = field(48)
    #expect(field(44) == 5 * 24)
    let regions = (0..<5).map { index in
      let at = map + 24 * UInt64(index)
      return [UInt64(bench.word(at)), bench.long(at + 4), bench.long(at + 12), UInt64(bench.word(at + 20))]
    }
    #expect(
      regions == [
        [20, 0, 0x9_fc00, 1], [20, 0x9_fc00, 0x400, 2], [20, 0xe_0000, 0x2_0000, 2],
        [20, 0x10_0000, 0x70_0000, 1], [20, 0xb000_0000, 0x1000_0000, 2],
      ])
  }

  @Test func `without a module the module flag is clear`() throws {
    let bench = BootBench(size: 8 << 20)
    let information = UInt64(try enter(bench, SyntheticMultiboot.elf(is64Bit: true).bytes).startInformation)
    #expect(bench.word(information) == 1 << 0 | 1 << 2 | 1 << 6 | 1 << 9)
    #expect(bench.word(information + 20) == 0)
  }

  @Test func `an empty module is still a module`() throws {
    var bench = BootBench(size: 8 << 20)
    bench.initialRAMDisk = []
    let information = UInt64(try enter(bench, SyntheticMultiboot.elf(is64Bit: true).bytes).startInformation)
    let module = UInt64(bench.word(information + 24))
    #expect(bench.word(module) == bench.word(module + 4))
  }

  @Test func `a kernel is loaded at the addresses that its header gives`() throws {
    let bench = BootBench(size: 8 << 20)
    #expect(bench.memory.store([UInt8](repeating: 0xff, count: 0x4000), at: 0x10_0000))
    let kernel = SyntheticMultiboot.flat()
    let entry = try enter(bench, kernel)
    #expect(entry.instructionPointer == 0x10_0100)
    #expect(bench.bytes(0x10_0000, 0x800) == Array(kernel[..<0x800]))
    #expect(bench.bytes(0x10_0800, 0x1800).allSatisfy { $0 == 0 })
    #expect(bench.bytes(0x10_2000, 1) == [0xff])
  }

  @Test func `zero end addresses load the whole file and clear nothing after it`() throws {
    let bench = BootBench(size: 8 << 20)
    #expect(bench.memory.store([UInt8](repeating: 0xff, count: 0x4000), at: 0x10_0000))
    let kernel = SyntheticMultiboot.flat(loadEnd: 0, bssEnd: 0)
    _ = try enter(bench, kernel)
    #expect(bench.bytes(0x10_0000, kernel.count) == kernel)
    #expect(bench.bytes(0x10_0000 + UInt64(kernel.count), 1) == [0xff])
  }

  @Test func `a header is valid only at a multiple of 4 in the first 8 KiB and with a correct checksum`() {
    let bench = BootBench(size: 8 << 20)
    let header = SyntheticMultiboot(flags: 1 << 16 | 3, addresses: [0x10_0000, 0x10_0000, 0, 0, 0x10_0000])
    func refusal(padding: Int, _ header: SyntheticMultiboot) -> BootError? {
      bench.refusal([UInt8](repeating: 0, count: padding) + header.bytes + pattern(64))
    }
    #expect(refusal(padding: 0, header) == nil)
    #expect(refusal(padding: 8160, header) == nil)
    #expect(refusal(padding: 2, header) == .unknownFormat(size: 98))
    #expect(refusal(padding: 8192, header) == .unknownFormat(size: 8288))
    #expect(refusal(padding: 8180, header) == .truncated(.kernel, .multibootHeader, end: 8212, size: 8192))
    var wrong = header
    wrong.checksumError = 1
    #expect(refusal(padding: 0, wrong) == .unknownFormat(size: 96))
  }

  @Test func `each kernel that cannot be started is refused with its reason`() {
    let bench = BootBench(size: 8 << 20)
    #expect(bench.refusal(SyntheticMultiboot().bytes + pattern(64)) == .notELF)
    #expect(
      bench.refusal(SyntheticMultiboot.elf(is64Bit: false, header: SyntheticMultiboot(flags: 7)).bytes)
        == .multibootFlagsUnsupported(7))
    func refusal(_ addresses: [UInt32], after padding: Int = 0x20) -> BootError? {
      let header = SyntheticMultiboot(flags: 1 << 16, addresses: addresses)
      return bench.refusal([UInt8](repeating: 0, count: padding) + header.bytes + pattern(0x1000))
    }
    func invalid(_ addresses: [UInt32]) -> BootError {
      .multibootAddressesInvalid(
        header: addresses[0], load: addresses[1], loadEnd: addresses[2], bssEnd: addresses[3])
    }
    for addresses: [UInt32] in [
      // The header lies before the loaded range; the header lies further into that range than into the file; an end
      // lies before its start.
      [0x10_0000, 0x10_0020, 0, 0, 0x10_0020], [0x10_0024, 0x10_0000, 0, 0, 0x10_0020],
      [0x10_0020, 0x10_0000, 0x10_0000, 0, 0x10_0020], [0x10_0020, 0x10_0000, 0xf_0000, 0, 0x10_0020],
      [0x10_0020, 0x10_0000, 0x10_0800, 0x10_0700, 0x10_0020], [0x10_0020, 0x10_0000, 0, 1, 0x10_0020],
    ] {
      #expect(refusal(addresses) == invalid(addresses))
    }
    #expect(
      refusal([0x10_0020, 0x10_0000, 0x10_2000, 0, 0x10_0020])
        == .truncated(.kernel, .loadRange, end: 0x2000, size: 0x1040))
    #expect(
      refusal([0x10_0020, 0x10_0000, 0x10_0800, .max, 0x10_0020])
        == .kernelDoesNotFit(address: 0x10_0000, size: 0xffef_ffff, memoryEnd: 8 << 20))
    #expect(
      refusal([0x10_0020, 0x10_0000, 0x10_0800, 0, 0x10_0800]) == .entryOutsideKernel(entry: 0x10_0800))
    #expect(
      refusal([.max, .max - 0x20, 0, 0, .max], after: 0x20)
        == .kernelDoesNotFit(address: 0xffff_ffdf, size: 0x1040, memoryEnd: 8 << 20))
  }
}
