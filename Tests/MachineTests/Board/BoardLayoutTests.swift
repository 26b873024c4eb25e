import Hardware
import Testing

@testable import Machine

@Suite struct BoardLayoutTests {
  private static let gib: UInt64 = 1 << 30

  @Test(
    "RAM of any size is split into low and high memory that overlaps neither windows nor chips",
    arguments: [
      1 << 20, 16 << 20, 64 << 20, gib, 2 * gib, 2 * gib + 1, 0xb000_0000 - 1, 0xb000_0000, 0xb000_0000 + 1, 3 * gib,
      4 * gib, 4 * gib + (1 << 20), 64 * gib, 200 * gib,
    ] as [UInt64], [39, 40, 46, 48, 52])
  func anyAmountOfRAM(size: UInt64, width: Int) throws {
    let layout = try #require(BoardLayout(memorySize: size, physicalAddressWidth: width))
    #expect(layout.lowMemorySize + layout.highMemorySize == size)
    if size <= 0xb000_0000 {
      #expect(layout.lowMemorySize == size)
    } else {
      #expect(layout.lowMemorySize == 0x8000_0000)
    }
    #expect(layout.lowMemorySize == min(size, BoardLayout.lowMemoryLimit(memorySize: size)))
    // RAM, ECAM, the windows and the chips do not overlap, and all lie inside the CPU's address space.
    let window = layout.memory64Window
    #expect(window.upperBound == 1 << UInt64(width))
    #expect((1 << 32) + layout.highMemorySize <= window.lowerBound)
    #expect(window.upperBound - window.lowerBound == min(1 << UInt64(width - 2), 1 << 39))
    #expect(window.lowerBound % Self.gib == 0)
    #expect(layout.lowMemorySize <= BoardLayout.configurationAccess)
    let memory = layout.memoryLayout
    #expect(memory.lowRAMEnd == layout.lowMemorySize)
    #expect(memory.highRAMEnd == (layout.highMemorySize > 0 ? (1 << 32) + layout.highMemorySize : nil))
  }

  @Test("the board's fixed address ranges above RAM do not overlap")
  func fixedRangesAreApart() {
    let ranges: [Range<UInt64>] = [
      BoardLayout.configurationAccess..<BoardLayout.configurationAccess + 256 << 20, BoardLayout.memory32Window,
      BoardLayout.ioapic..<BoardLayout.ioapic + 0x1000,
      BoardLayout.remappingUnit..<BoardLayout.remappingUnit + 0x1000 * UInt64(BoardLayout.remappingUnitLimit),
      0xfee0_0000..<0xfef0_0000,
    ]
    for (a, b) in zip(ranges, ranges.dropFirst()) { #expect(a.upperBound <= b.lowerBound) }
  }

  @Test("RAM that does not fit below the 64-bit window is refused")
  func moreThanTheCPUCanAddress() {
    // 39 bits: 512 GiB, of which the window takes the last quarter.
    #expect(BoardLayout(memorySize: 381 * Self.gib, physicalAddressWidth: 39) != nil)
    #expect(BoardLayout(memorySize: 382 * Self.gib, physicalAddressWidth: 39) != nil)
    #expect(BoardLayout(memorySize: 382 * Self.gib + 1, physicalAddressWidth: 39) == nil)
    for size in [1 << 52, 1 << 63, .max - (1 << 32), .max] as [UInt64] {
      for width in [0, 32, 39, 52, 64, 255] {
        #expect(BoardLayout(memorySize: size, physicalAddressWidth: width) == nil)
      }
    }
  }

  @Test("an address width that no CPU reports is clamped")
  func widthsThatNoCPUSays() throws {
    #expect(
      try #require(BoardLayout(memorySize: 64 << 20, physicalAddressWidth: 255)).memory64Window.upperBound == 1 << 52)
    let narrow = try #require(BoardLayout(memorySize: 64 << 20, physicalAddressWidth: 0))
    #expect(narrow.memory64Window.lowerBound >= 1 << 32)
  }

  /// The DSDT routes to GSI 16 + ((device + pin) & 7), where pin 0 is INTA#.
  @Test("a device's interrupt pin maps to the GSI that the DSDT names")
  func interruptPins() {
    for device in 0..<32 as Range<UInt8> {
      for pin in 1...4 as ClosedRange<UInt8> {
        let expected = 16 + (Int(device) + Int(pin) - 1) % 8
        #expect(
          BoardLayout.pin(of: RequesterID(bus: 0, device: device, function: 3), interruptPin: pin) == expected)
      }
    }
  }
}
