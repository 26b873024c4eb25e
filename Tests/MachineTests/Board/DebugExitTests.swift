import Devices
import Testing

@testable import Machine

/// Tests that an isa-debug-exit gets its ports, or is refused.
@Suite struct DebugExitTests {
  @Test(
    "ports of the board or of another device are refused",
    arguments: [(0x6f, 4), (0xcfb, 1), (0xf7, 2), (0xf2, 4)] as [(UInt16, UInt16)])
  func takenPorts(base: UInt16, size: UInt16) throws {
    let machine = try QTestBoard()
    let configuration = MachineConfiguration()
    var first = DebugExitOptions()
    first.id = try Identifier(text: "first")
    try machine.board.add(first, with: configuration)
    var second = DebugExitOptions()
    second.id = try Identifier(text: "second")
    second.base = base
    second.size = size
    #expect(throws: StartError.portsInUse(first: base, count: size)) {
      try machine.board.add(second, with: configuration)
    }
    // Nothing remains of the refused device: its id is free, and its ports do not answer.
    second.base = 0x501
    try machine.board.add(second, with: configuration)
    #expect(machine.board.ioBus.attachedRegions.filter { $0.device is DebugExit }.map(\.first) == [0xf4, 0x501])
  }
}
