import Hardware
import PCI
import TestSupport
import Testing

/// Whatever a guest does to a function, nothing traps, read-only bits stay, and the buses match the registers.
@Suite struct HostileAccessTests {
  private static func width(_ random: inout SeededGenerator) -> AccessWidth {
    AccessWidth(rawValue: 1 << Int(random.next() % 4)) ?? .byte
  }

  /// Returns a value that has a meaning more often than a uniformly random value has.
  private static func value(_ random: inout SeededGenerator) -> UInt64 {
    switch random.next() % 6 {
    case 0: 0
    case 1: .max
    case 2: 1 << (random.next() % 64)
    case 3: 0xc000_0000 | random.next() & 0xff_fff0
    default: random.next()
    }
  }

  @Test("after random accesses the buses match the registers", arguments: 0..<12 as Range<UInt64>)
  func randomAccesses(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let board = TestBoard()
    let (function, _) = board.make(.everything)
    let bus = Bus(number: 0)
    try? bus.add(function)
    let target = ConfigurationTarget(root: bus)
    let enhanced = EnhancedConfigurationAccess(target: target)
    let ports = PortConfigurationAccess(target: target)
    for _ in 0..<3_000 {
      let width = Self.width(&random)
      let value = Self.value(&random) & width.allOnes
      switch random.next() % 10 {
      case 0...3:
        enhanced.write(offset: 0x10 << 12 | random.next() % 4096, width: width, value: value)
      case 4:
        let offset = random.next() % 8
        ports.write(offset: offset, width: width, value: value)
        #expect(ports.read(offset: offset, width: width) <= width.allOnes)
      case 5: function.msix?.signal(Int(truncatingIfNeeded: Self.value(&random)))
      case 6: function.msi?.signal(Int(random.next() % 6) - 1)
      case 7: function.setINTx(value & 1 != 0)
      default:
        // At an address that a BAR decodes, and close to it.
        let bar = [0x10, 0x14, 0x18, 0x20][Int(random.next() % 4)]
        var address = UInt64(function.read32(bar) & ~0xf)
        if bar == 0x18 { address |= UInt64(function.read32(0x1c)) << 32 }
        address = address &+ random.next() % 0x900 &- 4
        let target = bar == 0x14 ? board.ioBus : board.memoryBus
        target.write(address: address, width: width, value: value)
        if let read = target.read(address: address, width: width) { #expect(read <= width.allOnes) }
      }
      checkInvariants(function, board)
    }
  }

  private func checkInvariants(_ function: Function, _ board: TestBoard) {
    let command = Command(rawValue: function.read16(StandardOffset.command))
    #expect(function.requester.busMasterEnable == command.contains(.busMasterEnable))
    for (bar, enable, bus) in [
      (0x10, Command.memorySpaceEnable, board.memoryBus), (0x14, .ioSpaceEnable, board.ioBus),
      (0x20, .memorySpaceEnable, board.memoryBus),
    ] where !command.contains(enable) {
      #expect(bus.read(address: UInt64(function.read32(bar) & ~0xf), width: .byte) == nil)
    }
    let status = function.read16(StandardOffset.status)
    #expect(status & ~8 == 0x10)
    let usesMessages = function.msix?.isEnabled == true || function.msi?.isEnabled == true
    #expect(board.line.asserted == (status & 8 != 0 && !usesMessages && !command.contains(.interruptDisable)))
    for offset in stride(from: 0, to: 256, by: 4) {
      var readOnly: UInt32 = 0
      var expected: UInt32 = 0
      for byte in 0..<4 {
        readOnly |= UInt32(~ConfigurationImageTests.writableImage[offset + byte]) << (8 * UInt32(byte))
        expected |= UInt32(ConfigurationImageTests.resetImage[offset + byte]) << (8 * UInt32(byte))
      }
      if offset == 0x04 { readOnly &= ~(8 << 16) }
      // The function itself sets MSI's pending bits.
      if offset == 0x60 { readOnly = 0 }
      #expect(function.read32(offset) & readOnly == expected & readOnly, "offset \(offset)")
    }
  }

  /// Two threads move the same BARs, two others access them, one resets. At the end the bus matches the registers.
  @Test("after concurrent moves, accesses and resets a BAR decodes where its register says")
  func threadsFightOverABar() async {
    let board = TestBoard()
    let (function, _) = board.make(.everything)
    let memoryBus = board.memoryBus
    await withTaskGroup(of: Void.self) { group in
      for task in 0..<5 as Range<UInt64> {
        group.addTask {
          var random = SeededGenerator(seed: task)
          for round in 0..<2_000 {
            switch task {
            case 0, 1:
              function.write32(0x10, 0xc000_0000 | UInt32(random.next() % 4) << 12)
              function.command(random.next() % 4 == 0 ? [] : [.memorySpaceEnable, .busMasterEnable])
            case 2, 3:
              let address = 0xc000_0000 + random.next() % 0x3ff8 & ~7
              memoryBus.write(address: address, width: .quadword, value: random.next())
              _ = memoryBus.read(address: address, width: .quadword)
              function.msix?.signal(Int(random.next() % 3))
              function.setINTx(random.next() % 2 == 0)
            default: if round % 100 == 0 { function.reset() }
            }
          }
        }
      }
    }
    function.write32(0x10, 0xc000_1000)
    function.command(.memorySpaceEnable)
    #expect(board.memoryBus.read(address: 0xc000_1000, width: .byte) != nil)
    for address in [0xc000_0000, 0xc000_2000, 0xc000_3000] as [UInt64] {
      #expect(board.memoryBus.read(address: address, width: .byte) == nil)
    }
    function.command([])
    #expect(board.memoryBus.read(address: 0xc000_1000, width: .byte) == nil)
  }
}
