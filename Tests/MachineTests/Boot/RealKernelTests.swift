import Glibc
import Hardware
import Testing

@testable import Machine

/// Loads the kernels of Images/kernel, where they have been built.
@Suite struct RealKernelTests {
  static let folders: [String] = {
    func variable(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
    let cache =
      variable("NESTLING_CACHE") ?? variable("XDG_CACHE_HOME").map { $0 + "/nestling" }
      ?? variable("HOME").map { $0 + "/.cache/nestling" }
    guard let cache, let directory = opendir(cache) else { return [] }
    defer { closedir(directory) }
    var folders: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      let path = cache + "/" + name
      // While the recipe stores a kernel, the folder's name ends with .new.
      if name.hasPrefix("linux-"), !name.hasSuffix(".new"), access(path + "/bzImage", R_OK) == 0,
        access(path + "/vmlinux", R_OK) == 0
      {
        folders.append(path)
      }
    }
    return folders.sorted()
  }()

  private static func read(_ path: String) throws -> [UInt8] {
    let file = try #require(fopen(path, "r"))
    defer { fclose(file) }
    fseek(file, 0, SEEK_END)
    let size = ftell(file)
    rewind(file)
    return [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
      count = fread(buffer.baseAddress, 1, size, file)
    }
  }

  @Test(.enabled(if: !folders.isEmpty, "no kernel in the cache: run Images/kernel"), arguments: folders)
  func `the bzImage is loaded at or above its preferred address`(folder: String) throws {
    let bench = BootBench(size: 64 << 20)
    let image = try Self.read(folder + "/bzImage")
    guard case .longMode(let entry) = try bench.load(image) else {
      Issue.record("not started in long mode")
      return
    }
    let start = (Int(image[0x1f1]) + 1) * 512
    #expect(entry.instructionPointer >= image.load(UInt64.self, at: 0x258) + 0x200)
    #expect(bench.bytes(entry.instructionPointer, 256) == Array(image[start + 0x200..<start + 0x300]))
    #expect(bench.bytes(entry.bootParameters + 0x202, 4) == Array("HdrS".utf8))
    let small = BootBench(size: 16 << 20)
    #expect(small.refusal(image) != nil)
    #expect(bench.refusal(Array(image.dropLast())) != nil)
  }

  @Test(.enabled(if: !folders.isEmpty, "no kernel in the cache: run Images/kernel"), arguments: folders)
  func `the vmlinux starts at its PVH entry`(folder: String) throws {
    let bench = BootBench(size: 64 << 20)
    let image = try Self.read(folder + "/vmlinux")
    guard case .protectedMode(let entry) = try bench.load(image) else {
      Issue.record("not started in protected mode")
      return
    }
    #expect(entry.instructionPointer >= 0x10_0000)
    #expect(bench.word(UInt64(entry.startInformation)) == 0x336e_c578)
    // Linux's PVH entry point starts with the instruction cld.
    #expect(bench.bytes(UInt64(entry.instructionPointer), 1) == [0xfc])
  }
}
