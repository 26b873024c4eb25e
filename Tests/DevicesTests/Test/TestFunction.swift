import Hardware
import PCI
import TestSupport

@testable import Devices

/// A function with one BAR, placed and decoding, as its driver sees it.
struct TestFunction {
  static let base: UInt64 = 0xc000_0000

  let board: TestBoard
  let function: Function

  init(_ function: Function, on board: TestBoard) {
    self.board = board
    self.function = function
    function.connect(interruptLine: board.line)
    for bar in function.description.baseAddressRegisters { function.place(bar, at: Self.base) }
    // Memory Space Enable and Bus Master Enable.
    function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x6)
  }

  func read(_ offset: UInt64, _ width: AccessWidth = .doubleword) -> UInt64? {
    board.memoryBus.read(address: Self.base + offset, width: width)
  }

  func write(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .doubleword) {
    board.memoryBus.write(address: Self.base + offset, width: width, value: value)
  }
}
