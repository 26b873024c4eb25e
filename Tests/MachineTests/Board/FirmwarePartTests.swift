import Devices
import Hardware
import PCI
import Testing

@testable import Machine

/// Nestling has no firmware. Checks that it sets up functions for an operating system as firmware would.
@Suite struct FirmwarePartTests {
  private func line(_ function: Function) -> UInt64 {
    function.readConfiguration(offset: StandardOffset.interruptLine, width: .byte)
  }

  @Test func `Interrupt Line holds the GSI that _PRT names, also after a reset`() throws {
    let machine = try QTestBoard()
    defer { withExtendedLifetime(machine) {} }
    let board = machine.board
    // Devices whose INTA# _PRT routes to different GSIs, a function with INTC#, and a function without a pin.
    for (device, pin) in [(3, 1), (4, 1), (9, 1), (12, 3), (13, 0)] as [(UInt8, UInt8)] {
      var description = FunctionDescription(vendorID: 0x1234, deviceID: 0x1111, classCode: 0xff0000)
      description.interruptPin = pin
      let address = RequesterID(bus: 0, device: device, function: 0)
      let function = Function(description, at: address, environment: board.environment(at: address))
      try board.plug(function, of: nil)
    }
    func lines() -> [UInt8: UInt64] {
      board.rootBus.all.reduce(into: [:]) { $0[$1.requester.id.device] = line($1) }
    }
    #expect(lines().values.allSatisfy { $0 == 0 })
    // 00:00.0 and 00:1f.0 are bridges without a pin.
    let expected: [UInt8: UInt64] = [0: 0, 3: 19, 4: 20, 9: 17, 12: 22, 13: 0, 31: 0]
    try board.placeResources()
    #expect(lines() == expected)
    // The register belongs to the driver: a written value stays until a reset.
    for function in board.rootBus.all {
      function.writeConfiguration(offset: StandardOffset.interruptLine, width: .byte, value: 0xa5)
    }
    #expect(lines().values.allSatisfy { $0 == 0xa5 })
    board.reset()
    #expect(lines().values.allSatisfy { $0 == 0 })
    try board.placeResources()
    #expect(lines() == expected)
  }
}
