import Hardware
import Testing

@testable import Machine

@Suite struct LinuxBootTests {
  private func enter(_ bench: BootBench, _ linux: SyntheticLinux = SyntheticLinux()) throws -> LongModeEntry {
    guard case .longMode(let entry) = try bench.load(linux.bytes) else {
      throw BootError.unknownFormat(size: 0)
    }
    return entry
  }

  @Test func `the kernel is loaded at its preferred address and entered at offset 0x200`() throws {
    let bench = BootBench(size: 8 << 20)
    let linux = SyntheticLinux()
    let entry = try enter(bench, linux)
    #expect(entry.instructionPointer == 0x20_0200)
    #expect(bench.bytes(0x20_0000, linux.payload.count) == linux.payload)
  }

  @Test func `a setup size of 0 means four sectors`() throws {
    let bench = BootBench(size: 8 << 20)
    let linux = SyntheticLinux(setupSectors: 0)
    _ = try enter(bench, linux)
    #expect(bench.bytes(0x20_0000, 16) == Array(linux.payload[..<16]))
  }

  @Test func `data after the kernel in the file is not loaded`() throws {
    let bench = BootBench(size: 8 << 20)
    let linux = SyntheticLinux(tail: [1, 2, 3, 4])
    _ = try enter(bench, linux)
    #expect(bench.word(0x20_0000 + UInt64(linux.payload.count)) == 0)
  }

  @Test func `boot_params holds the header, the command line, the memory map and the root pointer`() throws {
    let bench = BootBench(size: 8 << 20)
    let linux = SyntheticLinux()
    let entry = try enter(bench, linux)
    let parameters = entry.bootParameters
    // The header is the file's, except for the fields that the loader fills in.
    var expected = Array(linux.bytes[0x1f1..<0x26c])
    expected[0x210 - 0x1f1] = 0xff
    let commandLine = bench.word(parameters + 0x228)
    expected.store(commandLine, at: 0x228 - 0x1f1)
    for offset in [0x218, 0x21c, 0x250, 0x254] { expected.store(UInt32(0), at: offset - 0x1f1) }
    #expect(bench.bytes(parameters + 0x1f1, expected.count) == expected)
    #expect(bench.bytes(parameters + 0x26c, 0x24) == [UInt8](repeating: 0, count: 0x24))
    #expect(bench.bytes(parameters + 0x1ef, 1) == [0], "a sentinel of 0 means that the other fields are valid")
    #expect(bench.text(UInt64(commandLine)) == "console=ttyS0")
    #expect(bench.long(parameters + 0x70) == 0xe_0000)

    let map = (0..<4).map { index in
      let at = parameters + 0x2d0 + 20 * UInt64(index)
      return [bench.long(at), bench.long(at + 8), UInt64(bench.word(at + 16))]
    }
    #expect(
      map == [
        [0, 0x9_fc00, 1], [0x9_fc00, 0x400, 2], [0xe_0000, 0x2_0000, 2], [0x10_0000, 0x70_0000, 1],
      ])
    #expect(bench.bytes(parameters + 0x1e8, 1) == [5])
  }

  @Test func `without ACPI tables the root pointer is zero`() throws {
    var bench = BootBench(size: 8 << 20)
    bench.rootPointer = nil
    #expect(bench.long(try enter(bench).bootParameters + 0x70) == 0)
  }

  @Test func `the page tables identity-map the first 4 GiB`() throws {
    let bench = BootBench(size: 8 << 20)
    let root = try enter(bench).pageTableRoot
    #expect(root % 4096 == 0)
    func translate(_ address: UInt64) -> UInt64? {
      let top = bench.long(root + 8 * address[bits: 39...47])
      guard top[bit: 0] else { return nil }
      let directoryPointer = bench.long(top & ~0xfff + 8 * address[bits: 30...38])
      guard directoryPointer[bit: 0], !directoryPointer[bit: 7] else { return nil }
      let directory = bench.long(directoryPointer & ~0xfff + 8 * address[bits: 21...29])
      guard directory[bit: 0], directory[bit: 1], directory[bit: 7] else { return nil }
      return directory & ~0x1f_ffff | address[bits: 0...20]
    }
    for address: UInt64 in [0, 0x7123, 0x20_0200, 0x3fff_ffff, 0x4000_0000, 0xbfed_cba9, 0xffff_ffff] {
      #expect(translate(address) == address)
    }
    #expect(translate(1 << 32) == nil)
  }

  @Test func `the boot selectors name flat segments of the descriptor table`() throws {
    let bench = BootBench(size: 8 << 20)
    let entry = try enter(bench)
    #expect(entry.descriptorTableLimit == 31)
    let code = bench.long(entry.descriptorTableBase + UInt64(LongModeEntry.codeSelector))
    let data = bench.long(entry.descriptorTableBase + UInt64(LongModeEntry.dataSelector))
    // Base 0, limit 0xfffff, G, P, S; L without D for code, B for data.
    #expect(code == 0x00af_9b00_0000_ffff)
    #expect(data == 0x00cf_9300_0000_ffff)
  }

  @Test func `the initrd is page aligned and as high as allowed`() throws {
    var bench = BootBench(size: 8 << 20)
    bench.initialRAMDisk = cpio(5000)
    var parameters = try enter(bench).bootParameters
    #expect(bench.word(parameters + 0x218) == 0x7f_e000)
    #expect(bench.word(parameters + 0x21c) == 5000)
    #expect(bench.bytes(0x7f_e000, 5000) == cpio(5000))

    parameters = try enter(bench, SyntheticLinux(initialRAMDiskLast: 0x5f_ffff)).bootParameters
    #expect(bench.word(parameters + 0x218) == 0x5f_e000)
    // The range where the kernel unpacks itself is not free.
    parameters = try enter(bench, SyntheticLinux(initialSize: 0x5f_f000)).bootParameters
    #expect(bench.word(parameters + 0x218) == 0x1f_e000)
  }

  @Test func `without an initrd its fields are zero`() throws {
    let bench = BootBench(size: 8 << 20)
    let parameters = try enter(bench).bootParameters
    #expect(bench.word(parameters + 0x218) == 0)
    #expect(bench.word(parameters + 0x21c) == 0)
  }

  @Test func `a relocatable kernel that cannot use its preferred address is loaded at its alignment`() throws {
    let bench = BootBench(size: 16 << 20)
    #expect(try enter(bench, SyntheticLinux(preferredAddress: 0)).instructionPointer == 0x20_0200)
    #expect(try enter(bench, SyntheticLinux(preferredAddress: 0x30_1000)).instructionPointer == 0x40_0200)
    // The loader uses the minimum alignment if the preferred one would place the kernel outside RAM.
    let tight = SyntheticLinux(alignment: 0x100_0000, preferredAddress: 0x30_1000)
    #expect(try enter(bench, tight).instructionPointer == 0x40_0200)
    let fixed = SyntheticLinux(relocatable: false, preferredAddress: 0x30_1000)
    #expect(try enter(bench, fixed).instructionPointer == 0x30_1200)
  }

  @Test func `a kernel larger than RAM is refused with both sizes`() {
    let bench = BootBench(size: 8 << 20)
    let linux = SyntheticLinux(initialSize: 0x70_0000)
    let refusal = bench.refusal(linux.bytes)
    #expect(refusal == .kernelDoesNotFit(address: 0x20_0000, size: 0x70_0000, memoryEnd: 8 << 20))
    #expect(refusal?.description.contains("7340032") == true)
    #expect(refusal?.description.contains("8388608") == true)
  }

  @Test func `an initrd larger than the available room is refused with both sizes`() {
    var bench = BootBench(size: 8 << 20)
    bench.initialRAMDisk = cpio(0x50_0001)
    #expect(
      bench.refusal(SyntheticLinux().bytes)
        == .initialRAMDiskDoesNotFit(size: 0x50_0001, available: 0x50_0000))
  }

  @Test func `a command line may be as long as the kernel's limit, and no longer`() throws {
    var bench = BootBench(size: 8 << 20)
    bench.commandLine = String(repeating: "x", count: 2047)
    let entry = try enter(bench)
    #expect(bench.text(UInt64(bench.word(entry.bootParameters + 0x228))) == bench.commandLine)
    bench.commandLine += "x"
    #expect(bench.refusal(SyntheticLinux().bytes) == .commandLineTooLong(length: 2048, limit: 2047))
    bench.commandLine = String(repeating: "x", count: 1 << 20)
    #expect(
      bench.refusal(SyntheticLinux(commandLineLimit: .max).bytes) == .noRoom(.commandLine, size: 1 << 20 + 1))
  }

  @Test func `each kernel that cannot be started is refused with its reason`() {
    let bench = BootBench(size: 8 << 20)
    func refusal(_ change: (inout SyntheticLinux) -> Void) -> BootError? {
      var linux = SyntheticLinux()
      change(&linux)
      return bench.refusal(linux.bytes)
    }
    #expect(refusal { $0.version = 0x20b } == .protocolTooOld(version: 0x20b))
    #expect(refusal { $0.extendedLoadFlags = 0xfffe } == .not64Bit(extendedLoadFlags: 0xfffe))
    #expect(refusal { $0.loadFlags = 0x80 } == .notLoadedHigh)
    #expect(refusal { $0.headerLength = 0x65 } == .setupHeaderTooShort(end: 0x267))
    #expect(refusal { $0.alignment = 0 } == .kernelAlignmentInvalid(0))
    #expect(refusal { $0.alignment = 0x30_0000 } == .kernelAlignmentInvalid(0x30_0000))
    #expect(refusal { $0.bootFlag = 0 } == .unknownFormat(size: 0x3800))
    #expect(
      refusal { $0.systemSize = 0x301 }
        == .truncated(.kernel, .protectedModeKernel, end: 0x3810, size: 0x3800))
    #expect(
      refusal { $0.systemSize = 0 } == .truncated(.kernel, .protectedModeKernel, end: 0xa01, size: 0x3800))
    #expect(
      refusal { $0.systemSize = .max }
        == .truncated(.kernel, .protectedModeKernel, end: 0x800 + 0xf_ffff_fff0, size: 0x3800))
    #expect(
      refusal {
        $0.setupSectors = 255
        $0.payload = []
        $0.systemSize = 0x300
      } == .truncated(.kernel, .protectedModeKernel, end: 0x2_3000, size: 0x2_0000))
    #expect(
      refusal { $0.preferredAddress = .max }
        == .kernelDoesNotFit(address: .max, size: 0x10_0000, memoryEnd: 8 << 20))
    #expect(
      refusal {
        $0.preferredAddress = 0x9_0000
        $0.relocatable = false
      } == .kernelDoesNotFit(address: 0x9_0000, size: 0x10_0000, memoryEnd: 8 << 20))
  }

  @Test func `a bzImage cut off at any point is refused`() {
    let bench = BootBench(size: 8 << 20)
    let whole = SyntheticLinux().bytes
    for size in [0, 1, 0x1f0, 0x202, 0x205] {
      #expect(bench.refusal(Array(whole[..<size])) == .unknownFormat(size: UInt64(size)))
    }
    for size in [0x206, 0x207] {
      #expect(
        bench.refusal(Array(whole[..<size])) == .truncated(.kernel, .setupHeader, end: 0x208, size: UInt64(size)))
    }
    for size in [0x208, 0x26b] {
      #expect(
        bench.refusal(Array(whole[..<size])) == .truncated(.kernel, .setupHeader, end: 0x26c, size: UInt64(size)))
    }
    for size in [0x26c, 0x800, 0x37ff] {
      #expect(
        bench.refusal(Array(whole[..<size]))
          == .truncated(.kernel, .protectedModeKernel, end: 0x3800, size: UInt64(size)))
    }
  }
}
