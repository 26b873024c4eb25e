import Hardware
import PCI
import TestSupport
import Testing

/// Software writes random values to random registers of a port while devices come and go. The invariants hold after
/// each step, and a driver that starts after a reset finds a working slot.
@Suite struct SlotUnderAnythingTests {
  private enum Step: CaseIterable {
    case writeExpress, writeControl, writeAnywhere, number, insert, pullOut, takeEjected, request, reset
  }

  @Test(arguments: 1...12 as ClosedRange<UInt64>)
  func `after any write the registers show the state, and only switching power and its indicator off ejects the device`(
    seed: UInt64
  )
    throws
  {
    var generator = SeededGenerator(seed: seed)
    let slot = try SlotBoard(.native)
    let function = slot.port.function
    for _ in 0..<4000 {
      let control = slot.control
      let ejects = slot.ejectCount
      switch Step.allCases.randomElement(using: &generator) ?? .reset {
      case .writeExpress:
        let width = [AccessWidth.byte, .word, .doubleword, .quadword].randomElement(using: &generator) ?? .byte
        function.writeConfiguration(
          offset: slot.express + .random(in: 0x08...0x1c, using: &generator), width: width,
          value: generator.next() & width.allOnes)
      case .writeControl:
        // A driver changes one field, or a few related ones, at a time.
        let field = ([0x0001, 0x1039, 0x0300, 0x0400, 0x0700] as [UInt16]).randomElement(using: &generator) ?? 0
        slot.control = control & ~field | UInt16(truncatingIfNeeded: generator.next()) & field
      case .writeAnywhere:
        function.writeConfiguration(
          offset: .random(in: 0...4088, using: &generator), width: .doubleword, value: generator.next() & 0xffff_ffff)
      case .number: function.write32(0x18, 0x0001_0100)
      case .insert where !slot.isOccupied:
        let pressed = slot.status & 1
        slot.insert()
        #expect(slot.status & 0x109 == 0x108 | pressed, "presence and link have changed, and the button has not")
        #expect(slot.ejectCount == ejects)
      case .pullOut where !slot.isEjecting: slot.pullOut()
      case .request where !slot.isEjecting: _ = slot.requestRemoval()
      case .request: #expect(slot.port.requestRemoval() == .unpowered)
      case .reset where generator.next() % 16 == 0:
        slot.takeEjected()
        function.reset()
        #expect(slot.control == (slot.isOccupied ? 0x01c0 : 0x07c0))
      case .insert, .pullOut, .takeEjected, .reset: slot.takeEjected()
      }
      if slot.ejectCount > ejects {
        #expect(slot.ejectCount == ejects + 1 && slot.isOccupied)
        #expect(control & 0x0700 != 0x0700 && slot.control & 0x0700 == 0x0700)
      }
      check(slot)
    }
    slot.takeEjected()
    if slot.isOccupied { slot.pullOut() }
    function.reset()
    let driver = slot.makeDriver()
    driver.start()
    slot.insert()
    driver.run()
    #expect(driver.state == .on && driver.device == slot.identity)
    #expect(slot.requestRemoval() == .asked)
    driver.run()
    slot.takeEjected()
    #expect(!slot.isOccupied && driver.device == nil)
  }

  private func check(_ slot: SlotBoard) {
    let function = slot.port.function
    let (control, status) = (slot.control, slot.status)
    #expect(function.read32(slot.express + 0x14) == 7 << 19 | 0x5b)
    #expect(control & ~0x17f9 == 0 && status & ~0x0159 == 0)
    #expect((status & 0x40 != 0) == slot.isOccupied)
    let isDown =
      control & 0x0400 != 0 || function.read16(slot.express + 0x10) & 0x10 != 0 || function.read16(0x3e) & 0x40 != 0
    let isActive = slot.isOccupied && !isDown && !slot.isEjecting
    #expect((slot.linkStatus & 0x2000 != 0) == isActive)
    let enabled = control & 0x19 | (control & 0x1000 != 0 ? 0x100 : 0)
    let interrupts = control & 0x20 != 0 && enabled & status != 0
    let usesWire = function.read16(0x42) & 1 == 0 && function.read16(4) & 0x400 == 0
    #expect(slot.board.line.asserted == (interrupts && usesWire))
    let (secondary, subordinate) = (function.read8(0x19), function.read8(0x1a))
    guard secondary != 0 else { return }
    let found = UInt32(slot.access.read(offset: UInt64(secondary) << 20, width: .doubleword))
    #expect(found == (isActive && secondary <= subordinate ? slot.identity : .max))
  }
}
