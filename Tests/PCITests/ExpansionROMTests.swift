import Hardware
import PCI
import TestSupport
import Testing

/// The Expansion ROM Base Address register, power states that disable the BARs, and removing a function from its bus.
@Suite struct ExpansionROMTests {
  private let board = TestBoard()

  private func make(_ registers: [BaseAddressRegister], power: UInt16? = nil) -> (Function, RecordingModel) {
    var description = FunctionDescription.plain
    description.baseAddressRegisters = registers
    if let power {
      var given = ConfigurationLayout(space: ConfigurationSpace())
      given.powerManagementOffset = 0x40
      given.space.define(0x42, power)
      given.space.define(0x44, UInt16(0), writable: UInt16(3))
      description.configuration = given
    }
    return board.make(description)
  }

  @Test("the ROM decodes only with its own enable bit set") func theROMHasAnEnableBitOfItsOwn() {
    let (function, model) = make([
      .init(index: BaseAddressRegister.expansionROMIndex, space: .expansionROM, size: 0x10000)
    ])
    function.write32(0x30, .max)
    #expect(function.read32(0x30) == 0xffff_0001)
    function.write32(0x30, 0xd000_0800)
    #expect(function.read32(0x30) == 0xd000_0000)
    function.command(.memorySpaceEnable)
    #expect(board.memoryBus.read(address: 0xd000_0000, width: .byte) == nil)
    _ = model.take()
    function.write8(0x30, 1)
    #expect(model.take().first == .placed(bar: 6, base: 0xd000_0000))
    #expect(board.memoryBus.read(address: 0xd000_fff8, width: .quadword) == 6 << 32 | 0xfff8)
    function.command([])
    #expect(board.memoryBus.read(address: 0xd000_0000, width: .byte) == nil)
    // The six BARs are not affected.
    #expect((0..<6).allSatisfy { function.read32(0x10 + 4 * $0) == 0 })
  }

  @Test("firmware places the ROM and leaves it disabled") func theROMGetsAPlaceAndStaysOff() throws {
    let (function, _) = make([.init(index: 6, space: .expansionROM, size: 0x800)])
    var placement = ResourcePlacement(
      windows: .init(io: 0x1000..<0x1_0000, memory32: 0xc000_0000..<0xfec0_0000, memory64: 0..<0))
    try placement.place([function])
    #expect(function.read32(0x30) == 0xc000_0000 && function.read16(4) == 2)
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) == nil)
  }

  @Test(
    "BARs decode only in D0, and unsupported power states are ignored",
    arguments: [(0x0600, [0, 1, 2, 3]), (0x0000, [0, 3]), (0x0200, [0, 1, 3])] as [(UInt16, [UInt16])])
  func barsAnswerInD0Alone(_ capabilities: UInt16, _ states: [UInt16]) {
    let (function, model) = make([.init(index: 0, space: .memory32, size: 0x1000)], power: capabilities)
    function.write32(0x10, 0xd000_0000)
    function.command(.memorySpaceEnable)
    for state: UInt16 in 0...3 {
      function.write16(0x44, 0)
      _ = model.take()
      function.write16(0x44, state)
      #expect(function.read16(0x44) == (states.contains(state) ? state : 0))
      let answers = board.memoryBus.read(address: 0xd000_0000, width: .doubleword) != nil
      #expect(answers == (state == 0 || !states.contains(state)))
      if state > 0, states.contains(state) { #expect(model.take().first == .placed(bar: 0, base: nil)) }
    }
    function.reset()
    #expect(function.read16(0x44) == 0)
  }

  @Test("a function can be removed from its bus, and its address used again") func aFunctionIsPulledOut() throws {
    let bus = Bus(number: 0)
    let (first, _) = make([])
    let (second, _) = make([])
    try bus.add(first)
    // `second` has the same address, but was never on the bus.
    bus.remove(second)
    #expect(bus.function(at: 0x10) === first)
    bus.remove(first)
    #expect(bus.function(at: 0x10) == nil && bus.all.isEmpty)
    try bus.add(second)
    #expect(bus.function(at: 0x10) === second)
  }
}
