import Testing

@testable import Machine

@Suite struct InitialRAMDiskTests {
  private static let archives: [[UInt8]] = [
    Array("070701".utf8), Array("070702".utf8), [0x1f, 0x8b], [0x42, 0x5a, 0x68], [0x5d, 0, 0],
    [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], [0x89, 0x4c, 0x5a, 0x4f, 0x00, 0x0d, 0x0a, 0x1a, 0x0a],
    [0x02, 0x21, 0x4c, 0x18], [0x28, 0xb5, 0x2f, 0xfd], Array("hsqs".utf8),
    [UInt8](repeating: 0, count: 0x438) + [0x53, 0xef],
  ]

  private func refusal(_ disk: [UInt8], kernel: [UInt8] = SyntheticLinux().bytes) -> BootError? {
    var bench = BootBench(size: 8 << 20)
    bench.initialRAMDisk = disk
    return bench.refusal(kernel)
  }

  @Test(arguments: archives) func `each archive format that Linux unpacks is accepted`(start: [UInt8]) {
    #expect(refusal(start + pattern(64)) == nil)
  }

  @Test(arguments: archives.filter { $0.count < 14 })
  func `a file shorter than the smallest archive is refused, even if it has an archive's magic number`(start: [UInt8]) {
    #expect(refusal(start) == .initialRAMDiskUnrecognised(size: UInt64(start.count)))
  }

  @Test func `three bytes are refused as an initrd, for a bzImage and for a PVH kernel`() {
    for kernel in [SyntheticLinux().bytes, SyntheticELF.pvh.bytes] {
      let error = refusal([0x61, 0x62, 0x0a], kernel: kernel)
      #expect(error == .initialRAMDiskUnrecognised(size: 3))
      #expect(error?.description == "initrd is not an archive or file system that Linux can unpack (3 bytes)")
    }
  }

  @Test func `empty and unknown contents are refused`() {
    #expect(refusal([]) == .initialRAMDiskUnrecognised(size: 0))
    #expect(refusal(Array("070700".utf8) + pattern(100)) == .initialRAMDiskUnrecognised(size: 106))
    #expect(refusal([UInt8](repeating: 0, count: 4096)) == .initialRAMDiskUnrecognised(size: 4096))
  }

  @Test func `the error names an initrd that cannot be read`() {
    let bench = BootBench(size: 8 << 20)
    let request = BootRequest(
      kernel: BootFile(image: ArrayImage(SyntheticLinux().bytes, memory: bench.memory), name: "k"),
      initialRAMDisk: BootFile(image: BrokenImage(), name: "i"), layout: bench.layout)
    #expect(throws: BootError.readFailed(.initialRAMDisk, .host(.init("read", code: 5)))) {
      try request.load(into: bench.memory)
    }
  }
}
