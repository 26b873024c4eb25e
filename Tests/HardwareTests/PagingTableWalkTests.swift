import Hardware
import TestSupport
import Testing

/// Tables at 0x1000 (level 4), 0x2000, 0x3000 and 0x4000 (level 1). One entry of each is used.
@Suite struct PagingTableWalkTests {
  private let memory = HeapMemory(size: 0x8000)
  private let input: UInt64 = 5 << 39 | 6 << 30 | 7 << 21 | 8 << 12 | 0x123
  private let places: [UInt64] = [0x1000 + 5 * 8, 0x2000 + 6 * 8, 0x3000 + 7 * 8, 0x4000 + 8 * 8]

  init() {
    for (place, entry) in zip(places, [0x2003, 0x3003, 0x4003, 0x7003] as [UInt64]) {
      #expect(memory.storeUInt64(entry, at: place))
    }
  }

  private func walkTables(_ input: UInt64, from table: UInt64 = 0x1000, level: Int = 4) -> PagingPosition {
    memory.walkTables(input, from: table, level: level, mustHave: 3, mustNotHave: 0x80 | 1 << 62)
  }

  @Test("a walk ends at level 1 and returns the entry there, whatever its value")
  func endsAtTheLastTableWhateverItHolds() {
    #expect(walkTables(input) == PagingPosition(address: places[3], entry: 0x7003, level: 1))
    _ = memory.storeUInt64(0, at: places[3])
    #expect(walkTables(input) == PagingPosition(address: places[3], entry: 0, level: 1))
  }

  @Test(
    "a walk ends at an entry that lacks a required bit or has a forbidden one",
    arguments: [0x3001, 0x3083, 0x3003 | 1 << 62, 0] as [UInt64])
  func endsWhereABitIsMissingOrBarred(entry: UInt64) {
    _ = memory.storeUInt64(entry, at: places[1])
    #expect(walkTables(input) == PagingPosition(address: places[1], entry: entry, level: 3))
  }

  @Test("a walk can start at any level") func goesOnFromAnyLevel() {
    #expect(walkTables(input, from: 0x3000, level: 2) == PagingPosition(address: places[3], entry: 0x7003, level: 1))
    #expect(walkTables(input, from: 0x4000, level: 1) == PagingPosition(address: places[3], entry: 0x7003, level: 1))
  }

  @Test("bits 51:12 of an entry are the next table's address") func takesBits51To12AsTheNextTable() {
    _ = memory.storeUInt64(0xfff0_0000_0000_3003 & ~(1 << 62), at: places[1])
    #expect(walkTables(input).address == places[3])
  }

  @Test("a walk that reaches a table outside RAM stops there and returns no entry") func tellsWhatIsNotRAM() {
    _ = memory.storeUInt64(0x10_0000_0003, at: places[1])
    #expect(walkTables(input) == PagingPosition(address: 0x10_0000_0000 + 7 * 8, entry: nil, level: 2))
  }

  @Test("the index of level 5 has nine bits") func usesTheTopIndexOfFiveLevels() {
    #expect(memory.storeUInt64(0x1003, at: 0x5000 + 0x1ff * 8))
    let high = input | 0x1ff << 48 | 0x7f << 57
    #expect(walkTables(high, from: 0x5000, level: 5) == PagingPosition(address: places[3], entry: 0x7003, level: 1))
  }
}
