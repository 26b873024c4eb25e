import Hardware
import PCI
import TestSupport
import Testing

/// Sizing, placing and moving BARs, and the Command bits that enable them.
@Suite struct BaseAddressTests {
  private let board = TestBoard()

  private func bars(_ bars: [BaseAddressRegister]) -> (Function, RecordingModel) {
    var description = FunctionDescription.plain
    description.baseAddressRegisters = bars
    return board.make(description)
  }

  @Test("a 32-bit BAR reads back its size mask and decodes where it is placed") func sizingA32BitBAR() {
    let (function, _) = bars([.init(index: 0, space: .memory32, size: 0x4000)])
    function.write32(0x10, .max)
    #expect(function.read32(0x10) == 0xffff_c000)
    function.write32(0x10, 0xc000_1234)
    #expect(function.read32(0x10) == 0xc000_0000)
    function.command(.memorySpaceEnable)
    #expect(board.memoryBus.read(address: 0xc000_3ffc, width: .doubleword) == 0x3ffc)
    #expect(board.memoryBus.read(address: 0xc000_4000, width: .byte) == nil)
  }

  @Test("a 64-bit BAR reads back its size mask and decodes where it is placed") func sizingA64BitBAR() {
    let (function, _) = bars([.init(index: 2, space: .memory64, size: 8 << 30, prefetchable: true)])
    function.write32(0x18, .max)
    function.write32(0x1c, .max)
    #expect(function.read32(0x18) == 0x0000_000c)
    #expect(function.read32(0x1c) == 0xffff_fffe)
    function.write32(0x18, 0)
    function.write32(0x1c, 0x41)
    #expect(function.read32(0x1c) == 0x40)
    function.command(.memorySpaceEnable)
    #expect(board.memoryBus.read(address: 0x41_ffff_fff8, width: .quadword) == 2 << 32 | 0x1_ffff_fff8)
    #expect(board.memoryBus.read(address: 0x42_0000_0000, width: .byte) == nil)
  }

  @Test("an I/O BAR reads back its size mask and decodes where it is placed") func sizingAnIOBAR() {
    let (function, _) = bars([.init(index: 5, space: .io, size: 0x40)])
    function.write32(0x24, .max)
    #expect(function.read32(0x24) == 0xffff_ffc1)
    function.write32(0x24, 0x1043)
    #expect(function.read32(0x24) == 0x1041)
    function.command(.ioSpaceEnable)
    #expect(board.ioBus.read(address: 0x107f, width: .byte) == 0x3f)
    #expect(board.ioBus.read(address: 0x1080, width: .byte) == nil)
    #expect(board.memoryBus.read(address: 0x1040, width: .byte) == nil)
  }

  @Test("memory and I/O BARs decode only while their space is enabled") func eachSpaceHasItsOwnGate() {
    let (function, model) = bars([
      .init(index: 0, space: .memory32, size: 0x1000), .init(index: 1, space: .io, size: 0x10),
    ])
    function.write32(0x10, 0xc000_0000)
    function.write32(0x14, 0x1000)
    #expect(model.take().allSatisfy { if case .placed = $0 { false } else { true } })
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) == nil)
    function.command(.memorySpaceEnable)
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) != nil)
    #expect(board.ioBus.read(address: 0x1000, width: .byte) == nil)
    function.command([.memorySpaceEnable, .ioSpaceEnable])
    #expect(board.ioBus.read(address: 0x1000, width: .byte) != nil)
    function.command(.ioSpaceEnable)
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) == nil)
    #expect(board.ioBus.read(address: 0x1000, width: .byte) != nil)
    function.command([])
    #expect(board.ioBus.read(address: 0x1000, width: .byte) == nil)
    let placed = model.take().filter { if case .placed = $0 { true } else { false } }
    #expect(
      placed == [
        .placed(bar: 0, base: 0xc000_0000), .placed(bar: 1, base: 0x1000), .placed(bar: 0, base: nil),
        .placed(bar: 1, base: nil),
      ])
    // Disabling the space keeps the addresses.
    #expect(function.read32(0x10) == 0xc000_0000)
  }

  @Test("a BAR that is written while it decodes moves at once") func movingWhileDecoding() {
    let (function, model) = bars([.init(index: 0, space: .memory32, size: 0x1000)])
    function.write32(0x10, 0xc000_0000)
    function.command(.memorySpaceEnable)
    _ = model.take()
    function.write32(0x10, 0xd000_0000)
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) == nil)
    #expect(board.memoryBus.read(address: 0xd000_0ffc, width: .doubleword) == 0xffc)
    #expect(model.take().prefix(2) == [.placed(bar: 0, base: nil), .placed(bar: 0, base: 0xd000_0000)])
    // Writing the same address again does not move the BAR.
    function.write32(0x10, 0xd000_0000)
    #expect(model.take() == [.configurationWritten(offset: 0x10, width: .doubleword, value: 0xd000_0000)])
  }

  @Test func `a model is notified of the visible parts of its BAR and of each change`() {
    final class Chip: BusDevice {
      func read(offset: UInt64, width: AccessWidth) -> UInt64 { 0xc }
      func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
    }
    func places(_ model: RecordingModel) -> [RecordingModel.Event] {
      model.take().filter { if case .configurationWritten = $0 { false } else { true } }
    }
    let (first, firstModel) = bars([.init(index: 0, space: .memory32, size: 0x1000)])
    let (second, secondModel) = bars([.init(index: 2, space: .memory32, size: 0x4000)])
    first.write32(0x10, 0xc000_1000)
    first.command(.memorySpaceEnable)
    #expect(places(firstModel) == [.placed(bar: 0, base: 0xc000_1000)])
    // The second BAR is enabled later, and the first BAR hides a part of it.
    second.write32(0x18, 0xc000_0000)
    second.command(.memorySpaceEnable)
    let hole: [RecordingModel.Event] = [
      .placed(bar: 2, base: 0xc000_0000), .visible(bar: 2, parts: [0..<0x1000, 0x2000..<0x4000]),
    ]
    #expect(places(secondModel) == hole)
    #expect(places(firstModel) == [])
    // The first BAR moves beyond the second one, and back. The second BAR now hides it.
    first.write32(0x10, 0xc000_8000)
    #expect(places(firstModel) == [.placed(bar: 0, base: nil), .placed(bar: 0, base: 0xc000_8000)])
    #expect(places(secondModel) == [.placed(bar: 2, base: 0xc000_0000)])
    first.write32(0x10, 0xc000_1000)
    #expect(
      places(firstModel) == [
        .placed(bar: 0, base: nil), .placed(bar: 0, base: 0xc000_1000), .visible(bar: 0, parts: []),
      ])
    #expect(places(secondModel) == [])
    second.command([])
    #expect(places(secondModel) == [.placed(bar: 2, base: nil)])
    #expect(places(firstModel) == [.placed(bar: 0, base: 0xc000_1000)])
    // A fixed device of the board hides a BAR, even though it is attached later.
    let chip = board.memoryBus.attach(Chip(), at: 0xc000_1800, size: 0x100)
    #expect(
      places(firstModel) == [
        .placed(bar: 0, base: 0xc000_1000), .visible(bar: 0, parts: [0..<0x800, 0x900..<0x1000]),
      ])
    board.memoryBus.detach(chip)
    #expect(places(firstModel) == [.placed(bar: 0, base: 0xc000_1000)])
  }

  /// Two CPUs move two BARs over each other. Neither CPU may wait for the other forever. At the end, each model must
  /// know whether its BAR is visible.
  @Test(.timeLimit(.minutes(1)))
  func `after two CPUs move BARs over each other, each model knows whether its BAR is visible`() async {
    let functions = (0..<2).map { _ in bars([.init(index: 0, space: .memory32, size: 0x1000)]) }
    for (function, _) in functions { function.command(.memorySpaceEnable) }
    await withTaskGroup(of: Void.self) { group in
      for (function, _) in functions {
        group.addTask {
          for round in 0..<2_000 as Range<UInt32> { function.write32(0x10, 0xc000_0000 + round % 3 * 0x800 & ~0xfff) }
        }
      }
    }
    for (function, model) in functions {
      // The last notification.
      let visible = model.take().reduce(into: false) { visible, event in
        switch event {
        case .placed(_, let base): visible = base != nil
        case .visible(_, let parts): visible = !parts.isEmpty
        default: break
        }
      }
      board.memoryBus.write(address: UInt64(function.read32(0x10) & ~0xf), width: .byte, value: 1)
      #expect(visible == !model.take().isEmpty)
    }
  }

  /// Linux turns decoding off to size a BAR, and other systems leave it on. While the register holds ones, the BAR must
  /// not decode any address. When the register holds the address again, the BAR must decode it again.
  @Test("a BAR that is sized while decoding does not decode during the sizing") func sizingWhileDecoding() {
    let (function, _) = bars([
      .init(index: 0, space: .memory32, size: 0x1000), .init(index: 1, space: .io, size: 0x10),
      .init(index: 2, space: .memory64, size: 0x4000),
    ])
    function.write32(0x10, 0xc000_0000)
    function.write32(0x14, 0x1000)
    function.write32(0x18, 0xc010_0000)
    function.command([.memorySpaceEnable, .ioSpaceEnable])
    for (offset, address) in [(0x10, UInt64(0xffff_f000)), (0x14, 0xfff0), (0x18, .max - 0x3fff)] {
      let before = function.read32(offset)
      function.write32(offset, .max)
      if offset == 0x18 { function.write32(0x1c, .max) }
      let bus = offset == 0x14 ? board.ioBus : board.memoryBus
      #expect(bus.read(address: address, width: .byte) == nil)
      #expect(bus.read(address: UInt64(before & ~0xf), width: .byte) == nil)
      function.write32(offset, before)
      if offset == 0x18 { function.write32(0x1c, 0) }
      #expect(bus.read(address: UInt64(before & ~0xf), width: .byte) != nil)
    }
  }

  @Test("a BAR at address 0 does not decode") func nothingDecodesAtZero() {
    let (function, model) = bars([
      .init(index: 0, space: .memory32, size: 0x1000), .init(index: 1, space: .io, size: 0x10),
      .init(index: 2, space: .memory64, size: 0x1000),
    ])
    function.command([.memorySpaceEnable, .ioSpaceEnable])
    #expect(board.memoryBus.read(address: 0, width: .byte) == nil)
    #expect(board.ioBus.read(address: 0, width: .byte) == nil)
    #expect(model.take().count == 1)
  }

  @Test("BARs decode at the highest addresses, and I/O BARs within 64 KiB") func theHighestAddresses() {
    let (function, _) = bars([
      .init(index: 0, space: .memory32, size: 0x1000), .init(index: 1, space: .io, size: 0x10),
      .init(index: 2, space: .memory64, size: 0x1000),
    ])
    function.command([.memorySpaceEnable, .ioSpaceEnable])
    function.write32(0x10, 0xffff_e000)
    #expect(board.memoryBus.read(address: 0xffff_e000, width: .byte) != nil)
    function.write32(0x18, 0xffff_e000)
    function.write32(0x1c, .max)
    #expect(board.memoryBus.read(address: .max - 0x1fff, width: .byte) != nil)
    // An I/O BAR may decode the last ports below 64 KiB, and none beyond them.
    function.write32(0x14, 0xfff0)
    #expect(board.ioBus.read(address: 0xffff, width: .byte) == 0xf)
    function.write32(0x14, 0x1_0000)
    #expect(board.ioBus.read(address: 0x1_0000, width: .byte) == nil)
    #expect(board.ioBus.read(address: 0xffff, width: .byte) == nil)
  }

  @Test("a BAR does not hide the board's fixed regions") func theBoardsOwnRegionsAreNotCovered() {
    final class Fixed: BusDevice {
      func read(offset: UInt64, width: AccessWidth) -> UInt64 { 0x77 }
      func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
    }
    _ = board.memoryBus.attach(Fixed(), at: 0xfee0_0000, size: 0x1000)
    let (function, _) = bars([.init(index: 0, space: .memory32, size: 16 << 20)])
    function.command(.memorySpaceEnable)
    function.write32(0x10, 0xfe00_0000)
    #expect(board.memoryBus.read(address: 0xfee0_0000, width: .byte) == 0x77)
    #expect(board.memoryBus.read(address: 0xfedf_ffff, width: .byte) == 0xff)
    #expect(board.memoryBus.read(address: 0xfee0_1000, width: .doubleword) == 0xe0_1000)
  }

  @Test("a one-byte write to a BAR's register moves the BAR") func aByteOfTheRegisterMovesToo() {
    let (function, _) = bars([.init(index: 0, space: .memory32, size: 0x1000)])
    function.command(.memorySpaceEnable)
    function.write8(0x13, 0xc1)
    #expect(board.memoryBus.read(address: 0xc100_0000, width: .byte) != nil)
    function.write8(0x11, 0xff)
    #expect(board.memoryBus.read(address: 0xc100_f000, width: .byte) != nil)
    #expect(board.memoryBus.read(address: 0xc100_0000, width: .byte) == nil)
    // A write that begins before the register and ends in it moves the BAR, too.
    function.writeConfiguration(offset: 0x0c, width: .quadword, value: 0xc200_0000 << 32)
    #expect(board.memoryBus.read(address: 0xc200_0000, width: .byte) != nil)
  }

  @Test("a revoked function has no regions, and later writes do not bring them back")
  func removalTakesTheRegionsAway() {
    let (function, model) = bars([.init(index: 0, space: .memory32, size: 0x1000)])
    function.write32(0x10, 0xc000_0000)
    function.command([.memorySpaceEnable, .busMasterEnable])
    _ = model.take()
    function.revoke()
    #expect(model.take() == [.placed(bar: 0, base: nil)])
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) == nil)
    #expect(!function.requester.busMasterEnable)
    // A write that was in flight during revoke must not bring the BAR's region back.
    function.write32(0x10, 0xc000_0000)
    function.command([.memorySpaceEnable, .busMasterEnable])
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) == nil)
    #expect(!function.requester.busMasterEnable)
    #expect(model.take().isEmpty)
    function.setINTx(true)
    #expect(!board.line.asserted)
  }
}
