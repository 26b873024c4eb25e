import Glibc
import Linux
import Testing

@Suite struct GuestMemoryTests {
  private static let low: UInt64 = 0x3000
  private static let high: UInt64 = 1 << 32

  /// Returns memory with 12 KiB below 4 GiB and 8 KiB above.
  private func split() throws -> GuestMemory { try GuestMemory(size: 0x5000, lowLimit: Self.low) }

  private func read(_ memory: GuestMemory, _ address: UInt64, _ count: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0xee, count: count)
    var span = bytes.mutableSpan
    var raw = span.mutableBytes
    return memory.read(from: address, into: &raw) ? bytes : nil
  }

  private func write(_ memory: GuestMemory, _ address: UInt64, _ bytes: [UInt8]) -> Bool {
    memory.write(bytes.span.bytes, to: address)
  }

  @Test("RAM beyond the low limit is a second region at 4 GiB") func itsRegions() throws {
    let small = try GuestMemory(size: 0x2000, lowLimit: Self.low)
    #expect(small.regions.count == 1)
    #expect(small.regions[0].size == 0x2000)
    let memory = try split()
    #expect(memory.regions.map(\.address) == [0, Self.high])
    #expect(memory.regions.map(\.size) == [0x3000, 0x2000])
    #expect(memory.regions.map(\.fileOffset) == [0, 0x3000])
    #expect(memory.hostAddress(of: memory.regions[1]) - memory.hostAddress(of: memory.regions[0]) == 0x3000)
    let exact = try GuestMemory(size: Self.low, lowLimit: Self.low)
    #expect(exact.regions.count == 1)
    #expect(!exact.contains(Self.high, count: 1))
  }

  @Test("a range is RAM only if one region contains all of it") func containsEveryEdge() throws {
    let memory = try split()
    for (address, count, expected) in [
      (0, 1, true), (0, 0x3000, true), (0, 0x3001, false), (0x2fff, 1, true), (0x2fff, 2, false), (0x3000, 1, false),
      (Self.high - 1, 1, false), (Self.high - 1, 2, false), (Self.high, 0x2000, true), (Self.high, 0x2001, false),
      (Self.high + 0x1fff, 1, true), (Self.high + 0x2000, 1, false), (0, .max, false), (1, .max, false),
      (Self.high, .max, false), (.max, 1, false), (.max, .max, false), (.max - 7, 8, false), (1 << 63, 1, false),
      // These ranges include a part of the hole between the two regions.
      (0, 0x5000, false), (0x2000, Self.high, false),
    ] as [(UInt64, UInt64, Bool)] {
      #expect(memory.contains(address, count: count) == expected, "\(address), \(count)")
    }
  }

  @Test("accesses of 2, 4 and 8 bytes work up to each region's end, and not beyond")
  func numberedAccessesAtTheEdges() throws {
    let memory = try split()
    for end in [Self.low, Self.high + 0x2000] {
      #expect(memory.storeUInt16(0x1122, at: end - 2))
      #expect(memory.loadUInt16(at: end - 2) == 0x1122)
      #expect(memory.storeUInt32(0x3344_5566, at: end - 4))
      #expect(memory.loadUInt32(at: end - 4) == 0x3344_5566)
      #expect(memory.storeUInt64(0x0102_0304_0506_0708, at: end - 8))
      #expect(memory.loadUInt64(at: end - 8) == 0x0102_0304_0506_0708)
      #expect(read(memory, end - 8, 8) == [8, 7, 6, 5, 4, 3, 2, 1])
    }
    for address in [Self.low, Self.high - 8, Self.high + 0x2000, .max - 7, .max - 15, 1 << 63] as [UInt64] {
      #expect(memory.loadUInt16(at: address) == nil)
      #expect(memory.loadUInt32(at: address) == nil)
      #expect(memory.loadUInt64(at: address) == nil)
      #expect(!memory.storeUInt16(0, at: address))
      #expect(!memory.storeUInt32(0, at: address))
      #expect(!memory.storeUInt64(0, at: address))
      #expect(memory.compareExchangeUInt64(at: address, expected: 0, desired: 1) == nil)
    }
  }

  @Test("accesses of 2, 4 and 8 bytes require alignment") func numberedAccessesWantAlignment() throws {
    let memory = try split()
    for address in 0..<16 as Range<UInt64> {
      #expect((memory.loadUInt16(at: address) != nil) == (address % 2 == 0))
      #expect((memory.loadUInt32(at: address) != nil) == (address % 4 == 0))
      #expect((memory.loadUInt64(at: address) != nil) == (address % 8 == 0))
      #expect(memory.storeUInt16(0, at: address) == (address % 2 == 0))
      #expect(memory.storeUInt32(0, at: address) == (address % 4 == 0))
      #expect(memory.storeUInt64(0, at: address) == (address % 8 == 0))
      #expect((memory.compareExchangeUInt64(at: address, expected: 0, desired: 0) != nil) == (address % 8 == 0))
    }
    #expect(memory.loadUInt64(at: Self.low - 4) == nil)
  }

  @Test("compare-exchange returns the old value and stores only on a match") func compareAndExchange() throws {
    let memory = try split()
    #expect(memory.compareExchangeUInt64(at: 8, expected: 0, desired: 5) == 0)
    #expect(memory.compareExchangeUInt64(at: 8, expected: 0, desired: 6) == 5)
    #expect(memory.loadUInt64(at: 8) == 5)
    #expect(memory.compareExchangeUInt64(at: 8, expected: 5, desired: .max) == 5)
    #expect(memory.loadUInt64(at: 8) == .max)
  }

  @Test("concurrent compare-exchanges lose no update") func exchangesOfThreadsAreNotLost() async throws {
    let memory = try split()
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<4 {
        group.addTask {
          for _ in 0..<5_000 {
            while let seen = memory.loadUInt64(at: 16),
              memory.compareExchangeUInt64(at: 16, expected: seen, desired: seen + 1) != seen
            {}
          }
        }
      }
    }
    #expect(memory.loadUInt64(at: 16) == 20_000)
  }

  @Test("a copy moves all bytes or none") func copiesAreWholeOrNothing() throws {
    let memory = try split()
    #expect(write(memory, Self.low - 4, [1, 2, 3, 4]))
    #expect(read(memory, Self.low - 4, 4) == [1, 2, 3, 4])
    #expect(!write(memory, Self.low - 4, [9, 9, 9, 9, 9]))
    #expect(read(memory, Self.low - 4, 4) == [1, 2, 3, 4])
    #expect(read(memory, Self.low - 4, 5) == nil)
    #expect(write(memory, Self.high, [5, 6, 7]))
    #expect(read(memory, Self.high + 1, 2) == [6, 7])
    // The two regions are adjacent in the file, not in the guest.
    #expect(memory.loadUInt32(at: Self.high) == 0x0007_0605)
    #expect(read(memory, .max, 1) == nil)
    #expect(!write(memory, .max - 3, [1, 2, 3, 4, 5, 6, 7, 8]))
    #expect(read(memory, 0, 0) == [])
    #expect(write(memory, 0, []))
  }

  @Test("clearing zeroes both regions") func clearingZeroesAllOfIt() throws {
    let memory = try split()
    for address in [0, Self.low - 8, Self.high, Self.high + 0x1ff8] {
      #expect(memory.storeUInt64(.max, at: address))
    }
    try memory.clear()
    for address in [0, Self.low - 8, Self.high, Self.high + 0x1ff8] { #expect(memory.loadUInt64(at: address) == 0) }
    #expect(memory.storeUInt64(1, at: 0))
    #expect(memory.loadUInt64(at: 0) == 1)
  }

  @Test("a size that no host has is an error") func sizesThatNoHostHas() {
    for size in [0, .max, 1 << 63, UInt64(Int.max)] as [UInt64] {
      #expect(throws: SystemError.self) { try GuestMemory(size: size, lowLimit: 1 << 31) }
    }
  }

  /// A request for more huge pages than the pool has fails at once. It must not end in a SIGBUS later.
  @Test("missing huge pages and bad page sizes are errors") func hugePagesThatAreNotThere() {
    #expect(throws: SystemError.self) {
      try GuestMemory(size: 1 << 46, lowLimit: 1 << 31, backing: .hugePages(2 << 20))
    }
    #expect(throws: SystemError.self) {
      try GuestMemory(size: 2 << 20, lowLimit: 1 << 31, backing: .hugePages(3 << 12))
    }
  }

  @Test("random bytes fill the start of an array, up to the count") func randomNumbersFillTheFrontOfAnArray() {
    var bytes = [UInt8](repeating: 0, count: 0x1100)
    #expect(RandomSource.fill(&bytes, count: 0x1000) == 0x1000)
    #expect(Set(bytes[..<0x1000]).count > 200)
    #expect(bytes[0x1000...].allSatisfy { $0 == 0 })
    #expect(RandomSource.fill(&bytes, count: .max) == 0x1100)
    #expect(RandomSource.fill(&bytes, count: -1) == 0)
  }
}
