import Hardware
import TestSupport
import Testing

@testable import Machine

/// Loads files with arbitrary content: each load ends with an entry point in RAM or with a one-line error.
@Suite struct DamagedImageTests {
  private static let kernels: [(name: String, bytes: [UInt8])] = [
    ("bzImage", SyntheticLinux().bytes),
    ("PVH", SyntheticELF.pvh.bytes),
    ("Multiboot ELF32", SyntheticMultiboot.elf(is64Bit: false).bytes),
    ("Multiboot ELF64", SyntheticMultiboot.elf(is64Bit: true).bytes),
    ("Multiboot flat", SyntheticMultiboot.flat()),
  ]

  @Test(arguments: kernels.indices) func `random damage never traps`(index: Int) throws {
    let memorySize: UInt64 = 8 << 20
    var random = SeededGenerator(seed: UInt64(index) &* 7919 &+ 42)
    let whole = Self.kernels[index].bytes
    var refused = 0
    var loaded = 0
    for _ in 0..<1000 {
      var bytes = whole
      // Damage the headers more often than the content, and truncate about a third of the files.
      for _ in 0..<Int.random(in: 0...6, using: &random) {
        let limit = Bool.random(using: &random) ? bytes.count : 0x280
        let interesting: [UInt8] = [0, 1, 0x7f, 0x80, 0xff, UInt8.random(in: 0...255, using: &random)]
        bytes[Int.random(in: 0..<limit, using: &random)] = interesting[Int.random(in: 0..<6, using: &random)]
      }
      if Int.random(in: 0..<3, using: &random) == 0 {
        bytes = Array(bytes[..<Int.random(in: 0...bytes.count, using: &random)])
      }
      let memory = CountingMemory(size: memorySize)
      let request = BootRequest(
        kernel: BootFile(image: ArrayImage(bytes, memory: nil), name: "k"),
        initialRAMDisk: BootFile(image: ArrayImage(cpio(64), memory: nil), name: "i"),
        commandLine: "quiet", layout: GuestMemoryLayout(lowRAMEnd: memorySize), rootPointer: 0xe_0000)
      do throws(BootError) {
        switch try request.load(into: memory) {
        case .longMode(let entry):
          #expect(entry.instructionPointer < memorySize)
          #expect(entry.bootParameters < 0x10_0000)
        case .protectedMode(let entry):
          #expect(UInt64(entry.instructionPointer) < memorySize)
          #expect(entry.startInformation < 0x10_0000)
        }
        loaded += 1
      } catch {
        refused += 1
        #expect(memory.writes == 0, "refused only after memory was written: \(error)")
        #expect(!error.description.isEmpty && !error.description.contains("\n"))
      }
    }
    // Both outcomes occurred often enough.
    #expect(refused > 100)
    #expect(loaded > 50)
  }

  @Test(arguments: kernels.indices) func `a file cut off at any early byte is refused`(index: Int) {
    let memory = CountingMemory(size: 8 << 20)
    let whole = Self.kernels[index].bytes
    for size in 0..<0x500 {
      let request = BootRequest(
        kernel: BootFile(image: ArrayImage(Array(whole[..<size]), memory: nil), name: "k"),
        layout: GuestMemoryLayout(lowRAMEnd: 8 << 20))
      #expect(throws: BootError.self) { try request.load(into: memory) }
    }
    #expect(memory.writes == 0)
  }

  @Test func `a load to addresses without RAM is reported`() {
    let memory = CountingMemory(size: 0x8000)
    for kernel in Self.kernels {
      let request = BootRequest(
        kernel: BootFile(image: ArrayImage(kernel.bytes, memory: nil), name: "k"),
        layout: GuestMemoryLayout(lowRAMEnd: 8 << 20))
      do throws(BootError) {
        _ = try request.load(into: memory)
        Issue.record("\(kernel.name) was loaded to where there is no RAM")
      } catch {
        guard case .notMemory = error else {
          Issue.record("\(kernel.name): \(error)")
          continue
        }
      }
    }
  }

  @Test func `a machine with almost no RAM is refused without a trap`() {
    for size: UInt64 in [0, 1, 0x1000, 0x7001, 0x10_0000, 0x10_0001] {
      for kernel in Self.kernels {
        let request = BootRequest(
          kernel: BootFile(image: ArrayImage(kernel.bytes, memory: nil), name: "k"),
          layout: GuestMemoryLayout(lowRAMEnd: size))
        #expect(throws: BootError.self) { try request.load(into: CountingMemory(size: size)) }
      }
    }
  }

  @Test func `if the kernel cannot be read, the error names the kernel as the file`() {
    let request = BootRequest(
      kernel: BootFile(image: BrokenImage(), name: "k"), layout: GuestMemoryLayout(lowRAMEnd: 8 << 20))
    #expect(throws: BootError.readFailed(.kernel, .host(.init("read", code: 5)))) {
      try request.load(into: CountingMemory(size: 0))
    }
  }
}
