import Testing

@testable import Machine

@Suite struct GuestMemoryLayoutTests {
  private func map(_ layout: GuestMemoryLayout) -> [[UInt64]] {
    layout.regions.map { [$0.range.lowerBound, $0.range.upperBound, UInt64($0.type.rawValue)] }
  }

  @Test func `a small machine has its RAM in two pieces`() {
    #expect(
      map(GuestMemoryLayout(lowRAMEnd: 0x400_0000)) == [
        [0, 0x9_fc00, 1], [0x9_fc00, 0xa_0000, 2], [0xe_0000, 0x10_0000, 2], [0x10_0000, 0x400_0000, 1],
        [0xb000_0000, 0xc000_0000, 2],
      ])
  }

  @Test func `a large machine has the rest of its RAM above 4 GiB`() {
    let layout = GuestMemoryLayout(lowRAMEnd: 0x8000_0000, highRAMEnd: 0x1_4000_0000)
    #expect(map(layout).last == [0x1_0000_0000, 0x1_4000_0000, 1])
    #expect(map(layout)[3] == [0x10_0000, 0x8000_0000, 1])
  }

  @Test func `regions are ordered and do not overlap, for any size of RAM`() {
    for size: UInt64 in [0, 1, 0x1000, 0x9_fc00, 0xa_0000, 0x10_0000, 0x10_0001, 0x100_0000, 0xb000_0000] {
      let regions = GuestMemoryLayout(lowRAMEnd: size, highRAMEnd: 0x1_0000_1000).regions
      for (one, next) in zip(regions, regions.dropFirst()) {
        #expect(one.range.upperBound <= next.range.lowerBound)
      }
      #expect(regions.allSatisfy { !$0.range.isEmpty })
      let low = regions.filter { $0.type == .memory && $0.range.lowerBound < 1 << 32 }
      #expect(low.allSatisfy { $0.range.upperBound <= size })
    }
  }
}
