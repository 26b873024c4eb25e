import Glibc
import Linux
import Testing

/// Tests guest RAM by the report of the kernel in /proc/self/smaps (proc(5)).
@Suite struct GuestMemoryPageTests {
  /// The lines of one mapping.
  private struct Area {
    let base: UInt64
    let end: UInt64
    let fields: [String: [Substring]]

    /// `VmFlags`, two letters each.
    var flags: [Substring] { fields["VmFlags"] ?? [] }
    /// In KiB.
    func size(_ name: String) -> Int { fields[name]?.first.flatMap { Int($0) } ?? 0 }
  }

  /// Returns the mapping that contains an address.
  private func area(at address: UInt64) throws -> Area {
    let file = try FileDescriptor(opening: "/proc/self/smaps", O_RDONLY)
    var text: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while case let count = read(file.rawValue, &buffer, buffer.count), count > 0 { text += buffer[..<count] }
    var found: (base: UInt64, end: UInt64)?
    var fields: [String: [Substring]] = [:]
    for line in String(decoding: text, as: UTF8.self).split(separator: "\n") {
      let words = line.split(separator: " ")
      let ends = words[0].split(separator: "-")
      if ends.count == 2, let base = UInt64(ends[0], radix: 16), let end = UInt64(ends[1], radix: 16) {
        if found != nil { break }
        if base <= address, address < end { found = (base, end) }
      } else if found != nil {
        fields[String(words[0].dropLast())] = Array(words.dropFirst())
      }
    }
    let (base, end) = try #require(found)
    return Area(base: base, end: end, fields: fields)
  }

  private static let large = GuestMemory.largePageSize

  @Test(arguments: [.anonymous, .shared] as [GuestMemory.Backing])
  func `guest and host addresses have the same offset in their large pages`(backing: GuestMemory.Backing) throws {
    // There are several, because the kernel may align one mapping by chance.
    let several = try (0..<4).map { _ in
      try GuestMemory(size: 4 * Self.large + 0x3000, lowLimit: 2 * Self.large, backing: backing)
    }
    for memory in several {
      #expect(memory.regions.map(\.address) == [0, 1 << 32])
      for region in memory.regions { #expect((memory.hostAddress(of: region) ^ region.address) % Self.large == 0) }
      // The rest of the reservation that served the alignment is unmapped.
      let base = memory.hostAddress(of: memory.regions[0])
      let area = try area(at: base)
      #expect(area.base == base)
      #expect(area.end == base + 4 * Self.large + 0x3000)
    }
  }

  @Test(arguments: [.anonymous, .shared] as [GuestMemory.Backing])
  func `RAM uses large pages if the host has them, and core dumps leave it out`(backing: GuestMemory.Backing) throws {
    let memory = try GuestMemory(size: 4 * Self.large, lowLimit: 2 * Self.large, backing: backing)
    let flags = try area(at: memory.hostAddress(of: memory.regions[0])).flags
    // "sh": other processes can map it.
    #expect(flags.contains("sh") == (backing == .shared))
    #expect(flags.contains("dd"))
    #expect(flags.contains("hg") == Self.hostHasLargePages)
  }

  private static let hostHasLargePages = access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0

  @Test(.enabled(if: hostGivesLargePages, "this host has no transparent huge pages"))
  func `the first access allocates a large page, before a reset and after it`() throws {
    let memory = try GuestMemory(size: 8 * Self.large, lowLimit: 4 * Self.large)
    let base = memory.hostAddress(of: memory.regions[0])
    for _ in 0..<2 {
      #expect(try area(at: base).size("Rss") == 0)
      #expect(memory.storeUInt64(1, at: Self.large))
      #expect(memory.storeUInt64(1, at: 1 << 32))
      #expect(try area(at: base).size("AnonHugePages") == 2 * Int(Self.large >> 10))
      try memory.clear()
    }
  }

  private static let hostGivesLargePages: Bool = {
    guard let file = try? FileDescriptor(opening: "/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY) else {
      return false
    }
    var bytes = [UInt8](repeating: 0, count: 64)
    let count = read(file.rawValue, &bytes, bytes.count)
    return count > 0 && !String(decoding: bytes[..<count], as: UTF8.self).contains("[never]")
  }()

  @Test(arguments: [.anonymous, .shared] as [GuestMemory.Backing])
  func `clearing pinned memory keeps its pages`(backing: GuestMemory.Backing) throws {
    let memory = try GuestMemory(size: 2 * Self.large, lowLimit: 2 * Self.large, backing: backing)
    let base = memory.hostAddress(of: memory.regions[0])
    #expect(memory.storeUInt64(.max, at: 0x1000))
    let first = memory.pin()
    var second: GuestMemory.Pin? = memory.pin()
    try memory.clear()
    #expect(memory.loadUInt64(at: 0x1000) == 0)
    #expect(try area(at: base).size("Rss") == Int(2 * Self.large >> 10))
    second = nil
    try memory.clear()
    #expect(try second == nil && area(at: base).size("Rss") == Int(2 * Self.large >> 10), "one pin is left")
    _ = consume first
    try memory.clear()
    #expect(try area(at: base).size("Rss") == 0, "no pin is left")
  }

  /// This happens if one thread resets the machine while another plugs a device.
  @Test(arguments: [.anonymous, .shared] as [GuestMemory.Backing])
  func `a pin taken during a clear keeps the pages`(backing: GuestMemory.Backing) throws {
    let memory = try GuestMemory(size: 8 * Self.large, lowLimit: 8 * Self.large, backing: backing)
    let base = memory.hostAddress(of: memory.regions[0])
    func touch() -> Bool {
      stride(from: 0, to: 8 * Self.large, by: 0x1000).allSatisfy { memory.storeUInt64(1, at: $0) }
    }
    for round in 0..<80 {
      #expect(touch())
      let clear = try Thread(name: "clear") { try? memory.clear() }
      usleep(UInt32(round) * 4)
      let pin = memory.pin()
      #expect(touch())
      clear.join()
      #expect(try area(at: base).size("Rss") == Int(8 * Self.large >> 10))
      _ = consume pin
    }
  }
}
