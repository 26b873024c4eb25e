#if TESTABLE
  import Hardware
  import PCI

  @testable import Machine

  /// A guest's CPU accesses to ports, slots and devices: some as drivers make them, some wrong.
  struct FuzzGuest {
    let machine: MachineUnderTest

    private var board: Board { machine.board }

    static func capability(_ id: UInt8, of function: Function) -> Int? {
      var at = Int(function.readConfiguration(offset: 0x34, width: .byte))
      for _ in 0..<16 where at >= 0x40 {
        if function.readConfiguration(offset: at, width: .byte) == UInt64(id) { return at }
        at = Int(function.readConfiguration(offset: at + 1, width: .byte))
      }
      return nil
    }

    /// Writes to configuration space by one of the two mechanisms.
    private func write(_ bus: UInt8, _ deviceFunction: UInt8, _ offset: Int, _ width: Int, _ value: UInt64) {
      let target = UInt64(bus) << 8 | UInt64(deviceFunction)
      if offset < 0x100, offset & 1 == 0 {
        board.writePort(0xcf8, 4, 1 << 31 | target << 8 | UInt64(offset & 0xfc))
        board.writePort(0xcfc + UInt16(offset & 3), width, value)
      } else {
        board.writeMemory(BoardLayout.configurationAccess + target << 12 + UInt64(offset), width, value)
      }
    }

    private func port(_ input: inout FuzzInput) -> UInt8 { UInt8(1 + input.choice(4)) << 3 }

    /// Writes bus numbers, windows, Command, Bridge Control or Link Control of a port.
    func writePort(_ input: inout FuzzInput) {
      let port = port(&input)
      let registers: [(Int, Int)] = [
        (0x04, 2), (0x18, 4), (0x19, 1), (0x1a, 1), (0x1c, 2), (0x20, 4), (0x24, 4), (0x28, 4), (0x2c, 4), (0x30, 4),
        (0x3e, 2), (0x3e, 2), (-0x10, 2), (0x3c, 1),
      ]
      var (offset, width) = input.pick(registers)
      if offset < 0 { offset = express(port) + 0x10 }
      let value: UInt64 =
        switch input.choice(4) {
        case 0: input.value()
        case 1: UInt64(input.byte())
        case 2: offset == 0x3e ? 0x40 : offset == 0x04 ? 7 : 0x10
        default: offset == 0x18 ? UInt64(port >> 3) << 16 | UInt64(port >> 3) << 8 : 0
        }
      write(0, port, offset, width, value)
    }

    private func express(_ port: UInt8) -> Int {
      board.rootBus.function(at: port).flatMap { Self.capability(0x10, of: $0) } ?? 0x40
    }

    /// Writes Slot Control or Slot Status: a driver's command, or any value.
    func writeSlot(_ input: inout FuzzInput) {
      let port = port(&input)
      let slot = express(port) + 0x18
      let enables: UInt64 = 0x1039
      switch input.choice(8) {
      case 0: write(0, port, slot, 2, enables | 0x0100)
      case 1: write(0, port, slot, 2, enables | 0x0200)
      case 2: write(0, port, slot, 2, enables | 0x0700)
      case 3: write(0, port, slot, 2, enables | 0x0300)
      case 4: write(0, port, slot + 2, 2, 0x1ff)
      case 5:
        // The complete sequence of switching off.
        for value: UInt64 in [0x0200, 0x0600, 0x0700] { write(0, port, slot, 2, enables | value) }
      case 6:
        for value: UInt64 in [0x0200, 0x0100] { write(0, port, slot, 2, enables | value) }
      default: write(0, port, slot + input.choice(4), 1 << input.choice(3), input.value())
      }
    }

    private func controller(_ offset: UInt64) -> UInt16 { UInt16(BoardLayout.hotplugController + offset) }

    /// Makes any access to the ACPI hotplug controller.
    func useController(_ input: inout FuzzInput) {
      let offset = UInt64(input.choice(0x24))
      let width = 1 << input.choice(3)
      if input.choice(2) == 0 {
        _ = board.readPort(controller(offset), width)
      } else {
        board.writePort(controller(offset), width, input.choice(2) == 0 ? UInt64(input.byte()) : input.value())
      }
    }

    /// Ejects a slot's device or reports a status, as the DSDT's methods do.
    func ejectOrReport(_ input: inout FuzzInput) {
      let form = input.byte()
      board.writePort(controller(0x10), 4, UInt64(form & 3))
      if form & 4 != 0 {
        _ = board.readPort(controller(0), 4)
        _ = board.readPort(controller(4), 4)
      }
      if form & 8 != 0 { board.writePort(controller(8), 4, 1) }
      guard form & 0x10 != 0 else { return }
      board.writePort(controller(0x18), 4, form & 0x20 == 0 ? 3 : 1)
      board.writePort(controller(0x1c), 4, UInt64(form >> 6))
    }

    /// Accesses an address that a BAR decodes.
    func accessRegion(_ input: inout FuzzInput) {
      let regions = board.memoryBus.attachedRegions.filter { $0.priority == .movable }
      guard !regions.isEmpty else { return }
      let region = input.pick(regions)
      let offset = (input.choice(4) == 0 ? UInt64(input.word()) : UInt64(input.byte())) % (region.last - region.first)
      let width = 1 << input.choice(4)
      if input.choice(2) == 0 {
        _ = board.readMemory(region.first + offset, width)
      } else {
        board.writeMemory(region.first + offset, width, input.value())
      }
    }

    /// Enables everything, as a guest that has found all devices does.
    func enable(_ input: inout FuzzInput) {
      let form = input.byte()
      for port in board.busRoutes.ports {
        let number = UInt8(port.function.requester.id.device)
        if form & 1 != 0 { write(0, number << 3, 0x18, 4, UInt64(number) << 16 | UInt64(number) << 8) }
        if form & 2 != 0 {
          let window = 0xc000 + UInt64(number) << 8
          write(0, number << 3, 0x20, 4, window | (window + 0xf0) << 16)
        }
        write(0, number << 3, 0x04, 2, 7)
        for function in port.bus.all {
          let id = function.requester.id
          if form & 4 != 0 {
            for (index, bar) in function.description.baseAddressRegisters.enumerated() where bar.space != .io {
              let base = 0xc000_0000 + UInt64(number) << 24 + UInt64(id.function) << 22 + UInt64(index) << 20
              write(id.bus, id.deviceFunction, 0x10 + 4 * bar.index, 4, base)
            }
          }
          write(id.bus, id.deviceFunction, 0x04, 2, form & 8 == 0 ? 6 : 7)
        }
      }
    }

    /// Starts DMA of an edu, to RAM or to another device.
    func transfer(_ input: inout FuzzInput) {
      let regions = board.memoryBus.attachedRegions.filter { $0.priority == .movable }
      guard !regions.isEmpty else { return }
      let base = input.pick(regions).first
      let other = input.pick(regions).first
      let form = input.byte()
      board.writeMemory(base + 0x80, 8, form & 1 == 0 ? 0x40000 : form & 0x10 == 0 ? input.address() : other)
      board.writeMemory(base + 0x88, 8, form & 1 == 0 ? form & 0x10 == 0 ? input.address() : other : 0x40000)
      board.writeMemory(base + 0x90, 8, UInt64(input.word() & 0xfff))
      board.writeMemory(base + 0x98, 8, UInt64(form >> 1 & 7))
      if form & 0x80 != 0 { machine.workers.run() }
    }

    func configurationWrite(_ input: inout FuzzInput) {
      let bus = input.choice(6)
      let deviceFunction = bus == 0 ? port(&input) : UInt8(input.choice(8))
      let offset = input.choice(4) == 0 ? Int(input.word() & 0xfff) : Int(input.byte())
      write(UInt8(bus), deviceFunction, offset, 1 << input.choice(3), input.value())
    }

    /// Resets the machine through q35's reset port.
    func reset() { board.writePort(0xcf9, 1, 0x06) }

    /// Writes to the other chips: power management, the unit's registers.
    func writeChip(_ input: inout FuzzInput) {
      if input.choice(2) == 0 {
        let address = UInt16(BoardLayout.powerManagement) + UInt16(input.choice(0x30))
        board.writePort(address, 1 << input.choice(3), input.value())
      } else {
        board.writeMemory(
          BoardLayout.remappingUnit + UInt64(input.word() & 0xfff), 1 << (2 + input.choice(2)), input.value())
      }
    }
  }
#endif
