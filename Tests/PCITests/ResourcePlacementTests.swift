import Hardware
import PCI
import TestSupport
import Testing

@Suite struct ResourcePlacementTests {
  private let board = TestBoard()
  private static let windows = ResourcePlacement.Windows(
    io: 0x1000..<0x1_0000, memory32: 0xc000_0000..<0xfec0_0000, memory64: 0x10_0000_0000..<0x20_0000_0000)

  private func function(_ device: UInt8, _ bars: [BaseAddressRegister]) -> Function {
    var description = FunctionDescription.plain
    description.baseAddressRegisters = bars
    return Function(
      description, at: RequesterID(bus: 0, device: device, function: 0), environment: board.environment)
  }

  /// Returns the ranges that the functions decode, read from their registers as software reads them.
  private func ranges(_ functions: [Function], _ space: (BaseAddressRegister.Space) -> Bool) -> [Range<UInt64>] {
    functions.flatMap { function in
      function.description.baseAddressRegisters.filter { space($0.space) }.map { bar in
        var base = UInt64(function.read32(bar.offset) & (bar.space == .io ? ~3 : ~0xf))
        if bar.space == .memory64 { base |= UInt64(function.read32(bar.offset + 4)) << 32 }
        return base..<base + bar.size
      }
    }
  }

  @Test("firmware places all BARs aligned, without overlaps, and enables decoding")
  func everythingIsAlignedApartAndDecoding() throws {
    let functions = (1..<20 as Range<UInt8>).map { device in
      function(
        device,
        [
          .init(index: 0, space: .io, size: 4 << (device % 5)),
          .init(index: 1, space: .memory32, size: 16 << (device % 9)),
          .init(index: 2, space: .memory64, size: 0x1000 << (device % 7)),
          .init(index: 4, space: .memory64, size: 0x100, prefetchable: true),
        ])
    }
    var placement = ResourcePlacement(windows: Self.windows)
    try placement.place(functions)
    for (isIO, window) in [(true, Self.windows.io), (false, Self.windows.memory32)] {
      let all = ranges(functions) { ($0 == .io) == isIO }.sorted { $0.lowerBound < $1.lowerBound }
      for range in all {
        #expect(range.lowerBound % UInt64(range.count) == 0)
        #expect(range.clamped(to: window) == range)
        // Each memory BAR has its own pages, so that it can be mapped into guests.
        if !isIO { #expect(range.lowerBound % 4096 == 0) }
        let bus = isIO ? board.ioBus : board.memoryBus
        #expect(bus.read(address: range.lowerBound, width: .byte) != nil)
        #expect(bus.read(address: range.upperBound - 1, width: .byte) != nil)
      }
      for (a, b) in zip(all, all.dropFirst()) { #expect(a.upperBound <= b.lowerBound) }
    }
    for function in functions {
      #expect(function.read16(StandardOffset.command) == 3)
      #expect(!function.requester.busMasterEnable)
    }
  }

  @Test("large 64-bit BARs that do not fit below 4 GiB are placed above") func largeOnesSpillAbove4GiB() throws {
    let big = function(1, [.init(index: 0, space: .memory64, size: 512 << 20, prefetchable: true)])
    let bigger = function(2, [.init(index: 0, space: .memory64, size: 4 << 30, prefetchable: true)])
    let second = function(3, [.init(index: 0, space: .memory64, size: 512 << 20, prefetchable: true)])
    let small = function(4, [.init(index: 0, space: .memory32, size: 0x1000)])
    var placement = ResourcePlacement(windows: Self.windows)
    try placement.place([small, second, bigger, big])
    let memory = ranges([big, bigger, second, small]) { $0 != .io }
    #expect(memory[0] == 0xc000_0000..<0xe000_0000)
    #expect(memory[1] == 0x10_0000_0000..<0x11_0000_0000)
    #expect(memory[2] == 0x11_0000_0000..<0x11_2000_0000)
    #expect(memory[3] == 0xe000_0000..<0xe000_1000)
  }

  @Test("the error names the function and BAR without space") func whatFindsNoRoomIsNamed() {
    let fits = function(1, [.init(index: 0, space: .memory32, size: 512 << 20)])
    let tooMuch = function(2, [.init(index: 3, space: .memory32, size: 512 << 20)])
    var placement = ResourcePlacement(windows: Self.windows)
    let error = #expect(throws: ResourcePlacement.NoRoom.self) { try placement.place([fits, tooMuch]) }
    #expect(error?.address == RequesterID(bus: 0, device: 2, function: 0))
    #expect(error?.bar == 3)
    #expect(error?.size == 512 << 20)
    var ports = ResourcePlacement(windows: Self.windows)
    #expect(throws: ResourcePlacement.NoRoom.self) {
      try ports.place((1..<10).map { function($0, [.init(index: 0, space: .io, size: 0x2000)]) })
    }
    var huge = ResourcePlacement(windows: Self.windows)
    #expect(throws: ResourcePlacement.NoRoom.self) {
      try huge.place([function(1, [.init(index: 0, space: .memory64, size: 1 << 63)])])
    }
  }

  @Test("a window is used to its end") func aWindowIsUsedToItsEnd() throws {
    let windows = ResourcePlacement.Windows(io: 0x1000..<0x1010, memory32: 0xc000_0000..<0xc000_2000, memory64: 0..<0)
    let functions = [1, 2].map { function($0, [.init(index: 0, space: .memory64, size: 0x1000)]) }
    var placement = ResourcePlacement(windows: windows)
    try placement.place(functions)
    #expect(ranges(functions) { _ in true } == [0xc000_0000..<0xc000_1000, 0xc000_1000..<0xc000_2000])
    #expect(throws: ResourcePlacement.NoRoom.self) {
      try placement.place([function(3, [.init(index: 0, space: .memory32, size: 16)])])
    }
  }

  @Test("functions without BARs are not changed") func functionsWithoutBARsAreLeftAlone() throws {
    let bridge = function(0, [])
    bridge.command(.busMasterEnable)
    var placement = ResourcePlacement(windows: Self.windows)
    try placement.place([bridge])
    #expect(bridge.read16(StandardOffset.command) == Command.busMasterEnable.rawValue)
  }

  /// After a reset of the board, everything is placed where it was.
  @Test("placing again after a reset gives the same addresses") func placingAgainAfterAReset() throws {
    let functions = (1..<6 as Range<UInt8>).map {
      function($0, [.init(index: 0, space: .memory64, size: 0x4000), .init(index: 2, space: .io, size: 0x20)])
    }
    var first = ResourcePlacement(windows: Self.windows)
    try first.place(functions)
    let before = ranges(functions) { _ in true }
    for function in functions { function.reset() }
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) == nil)
    var second = ResourcePlacement(windows: Self.windows)
    try second.place(functions)
    #expect(ranges(functions) { _ in true } == before)
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) != nil)
  }
}
