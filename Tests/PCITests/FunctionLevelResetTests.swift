import Hardware
import PCI
import TestSupport
import Testing

/// Function-level reset (PCI Express Base 6.6.2).
@Suite struct FunctionLevelResetTests {
  private let board = TestBoard()
  private let deviceControl = EverythingOffset.express + 8

  /// Returns a function with every setting that a driver can make.
  private func makeBusy() -> (Function, RecordingModel) {
    let (function, model) = board.make(.everything)
    function.write32(0x10, 0xc000_0000)
    function.write32(0x14, 0x1000)
    function.write32(0x18, 0xd000_0000)
    function.write32(0x1c, 0x1)
    function.write32(0x20, 0xc010_0000)
    function.command([.memorySpaceEnable, .ioSpaceEnable, .busMasterEnable, .serrEnable])
    function.write8(StandardOffset.interruptLine, 11)
    function.write8(EverythingOffset.vendor + 3, 0x12)
    board.memoryBus.write(address: 0xc000_0000, width: .quadword, value: 0xfee0_0000)
    board.memoryBus.write(address: 0xc000_0008, width: .quadword, value: 0x31)
    function.write16(EverythingOffset.msix + 2, 0xc000)
    function.msix?.signal(0)
    function.setINTx(true)
    _ = model.take()
    return (function, model)
  }

  private func expectFresh(_ function: Function) {
    #expect((0..<256).map { function.read8($0) }.dump == ConfigurationImageTests.resetImage.dump)
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) == nil)
    #expect(board.memoryBus.read(address: 0x1_d000_0000, width: .byte) == nil)
    #expect(board.memoryBus.read(address: 0xc010_0000, width: .byte) == nil)
    #expect(board.ioBus.read(address: 0x1000, width: .byte) == nil)
    #expect(!function.requester.busMasterEnable)
    #expect(function.msix?.isEnabled == false)
    #expect(!board.line.asserted)
    // The MSI-X table and the pending bits have their reset values, once they decode again.
    function.write32(0x10, 0xc000_0000)
    function.command([.memorySpaceEnable, .busMasterEnable])
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .quadword) == 0)
    #expect(board.memoryBus.read(address: 0xc000_0008, width: .quadword) == 1 << 32)
    #expect(board.memoryBus.read(address: 0xc000_0800, width: .quadword) == 0)
    function.write16(EverythingOffset.msix + 2, 0x8000)
    #expect(board.router.messages.isEmpty)
  }

  @Test(
    "writing the initiate bit, with any access width, resets the function",
    arguments: [AccessWidth.byte, .word, .doubleword, .quadword])
  func initiatingItResetsTheFunction(width: AccessWidth) {
    let (function, model) = makeBusy()
    switch width {
    case .byte: function.write8(deviceControl + 1, 0xa8)
    case .word: function.write16(deviceControl, 0xa810)
    case .doubleword: function.write32(deviceControl, 0x0000_a810)
    case .quadword: function.writeConfiguration(offset: deviceControl - 4, width: width, value: 0xa810 << 32)
    }
    let events = model.take()
    #expect(events.filter { $0 == .reset }.count == 1)
    #expect(
      Set(events) == [
        .reset, .placed(bar: 0, base: nil), .placed(bar: 1, base: nil), .placed(bar: 2, base: nil),
        .placed(bar: 4, base: nil),
      ])
    expectFresh(function)
  }

  @Test("a reset by the board restores the same state as a function-level reset") func theBoardsResetDoesTheSame() {
    let (function, model) = makeBusy()
    function.reset()
    #expect(model.take().contains(.reset))
    expectFresh(function)
  }

  @Test("other bits of Device Control do not reset the function") func otherBitsOfDeviceControlDoNotReset() {
    let (function, model) = makeBusy()
    function.write16(deviceControl, 0x7fff)
    #expect(!model.take().contains(.reset))
    #expect(function.read16(deviceControl) == 0x78ff)
    function.write8(deviceControl, 0xff)
    #expect(!model.take().contains(.reset))
    // The same bit of Device Status, the next register, does not reset the function either.
    function.write16(deviceControl + 2, 0x8000)
    #expect(!model.take().contains(.reset))
  }

  @Test("a conventional function has no function-level reset") func aConventionalFunctionHasNone() {
    let (function, model) = board.make(.plain)
    for offset in stride(from: 0x40, to: 0x100, by: 4) { function.write32(offset, .max) }
    #expect(!model.take().contains(.reset))
  }
}
