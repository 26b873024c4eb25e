import Devices
import Hardware
import TestSupport
import Testing

/// Sends seeded random accesses to every chip: any width at any offset, within the region and beyond it, while the
/// host's side changes. A trap ends the test process. The tests also check that a read returns no more than its width
/// and that the chip still works afterwards.
@Suite struct HostileAccessTests {
  private func storm(
    _ device: any BusDevice, size: UInt64, seed: UInt64, count: Int = 20_000,
    between: (inout SeededGenerator) -> Void = { _ in }
  ) {
    var random = SeededGenerator(seed: seed)
    for _ in 0..<count {
      let width = AccessWidth.allCases[Int.random(in: 0..<4, using: &random)]
      let offset: UInt64 =
        switch Int.random(in: 0..<16, using: &random) {
        case 0: random.next()
        case 1: .max - UInt64.random(in: 0..<8, using: &random)
        default: UInt64.random(in: 0..<size, using: &random)
        }
      if Bool.random(using: &random) {
        let value = Bool.random(using: &random) ? random.next() : UInt64.random(in: 0..<256, using: &random)
        device.write(offset: offset, width: width, value: value & width.allOnes)
      } else {
        #expect(device.read(offset: offset, width: width) <= width.allOnes)
      }
      between(&random)
    }
  }

  @Test("a serial port survives random accesses and input", arguments: [UInt64(1), 2, 3])
  func serialPort(seed: UInt64) {
    let output = RecordingOutput()
    let line = RecordingLine()
    let port = SerialPort(output: output, interrupt: line)
    storm(port, size: SerialPort.regionSize, seed: seed) { random in
      if Int.random(in: 0..<8, using: &random) == 0 {
        port.receive((0..<Int.random(in: 0..<40, using: &random)).map { UInt8($0) })
      }
      #expect((0...16).contains(port.receiveRoom))
    }
    port.reset()
    #expect(!line.asserted)
    port.writeByte(0, 0x42)
    #expect(output.bytes.last == 0x42)
  }

  @Test("an I/O APIC survives random accesses and sends only well-formed messages", arguments: [UInt64(1), 2, 3])
  func ioapic(seed: UInt64) {
    let router = RecordingRouter()
    let requester = Requester(id: RequesterID(rawValue: 0xff00))
    let controller = IOAPICDevice(routes: (0..<24).map { _ in router.makeRoute(for: requester) })
    let lines = (0..<48).map { controller.line($0 % 24) }
    // Mostly accesses the three registers and the low selectors.
    storm(controller, size: IOAPICDevice.regionSize, seed: seed) { random in
      switch Int.random(in: 0..<4, using: &random) {
      case 0: lines[Int.random(in: 0..<48, using: &random)].set(Bool.random(using: &random))
      case 1: controller.endOfInterrupt(vector: UInt8.random(in: 0...255, using: &random))
      case 2:
        controller.write(offset: 0, width: .byte, value: UInt64.random(in: 0..<0x48, using: &random))
        controller.write(offset: 0x10, width: .doubleword, value: random.next() & 0xffff_ffff)
      default: controller.write(offset: 0x40, width: .doubleword, value: random.next() & 0xff)
      }
    }
    #expect(!router.messages.isEmpty)
    #expect(router.messages.allSatisfy { $0.address & ~0xf_fff4 == 0xfee0_0000 && $0.data & ~0xc7ff == 0 })
    controller.reset()
    for line in lines { line.set(false) }
    let count = router.messages.count
    controller.write(offset: 0, width: .byte, value: 0x10)
    controller.write(offset: 0x10, width: .doubleword, value: 0x0077)
    lines[0].set(true)
    #expect(router.messages.count == count + 1)
    #expect(router.messages.last?.data == 0x77)
  }

  @Test("the CMOS clock survives random accesses and times", arguments: [UInt64(1), 2, 3])
  func cmosClock(seed: UInt64) {
    let host = TestClock(ClockReading(seconds: 1_700_000_000, nanoseconds: 0))
    let clock = CMOSClock { host.now }
    storm(clock, size: CMOSClock.regionSize, seed: seed) { random in
      switch Int.random(in: 0..<8, using: &random) {
      case 0: host.now = ClockReading(seconds: host.now.seconds, nanoseconds: Int64(random.next() % 4_000_000_000))
      case 1: host.now = ClockReading(seconds: Int64(bitPattern: random.next()), nanoseconds: 0)
      // Mostly writes any value to the time and control registers.
      case 2...5: clock.write(offset: 0, width: .word, value: random.next() & 0xff0f)
      case 6: clock.write(offset: 0, width: .byte, value: UInt64.random(in: 0..<16, using: &random))
      default: #expect(clock.read(offset: 1, width: .byte) <= 0xff)
      }
    }
    clock.write(offset: 0, width: .word, value: 0x5a40)
    #expect(clock.readByte(1) == 0x5a)
  }

  @Test("the firmware configuration survives random accesses")
  func firmwareConfiguration() {
    let items = FirmwareConfigurationItems(memorySize: .max, processorCount: .max, maximumProcessorCount: .max)
    let device = FirmwareConfiguration(items: items)
    storm(device, size: FirmwareConfiguration.regionSize, seed: 1) { random in
      device.write(offset: 0, width: .word, value: UInt64.random(in: 0..<0x40, using: &random))
    }
    device.write(offset: 0, width: .word, value: 0)
    #expect(device.readByte(1) == 0x51)
  }

  @Test("random accesses to the debug exit give odd statuses only")
  func debugExit() {
    let exits = Calls<Int32>()
    storm(DebugExit { exits.append($0) }, size: DebugExit.regionSize, seed: 1)
    #expect(!exits.values.isEmpty)
    #expect(exits.values.allSatisfy { $0 & 1 == 1 })
  }

  @Test("reset control survives random accesses, which reach every type of reset")
  func resetControl() {
    let resets = Calls<ResetControlRegister.Reset>()
    let control = ResetControl { resets.append($0) }
    let ports = ConfigurationAndResetPorts(configuration: DebugExit { _ in }, resetControl: control)
    storm(control, size: ResetControl.regionSize, seed: 1)
    storm(ports, size: ConfigurationAndResetPorts.regionSize, seed: 2)
    #expect(Set(resets.values) == [.processors, .platform, .powerCycle])
  }

  @Test("power management survives random accesses and events", arguments: [UInt64(1), 2, 3])
  func powerManagement(seed: UInt64) {
    let clock = TestClock<UInt64>(0)
    let line = RecordingLine()
    let powerOffs = Calls<Bool>()
    let device = PowerManagement(clock: { clock.now }, interrupt: line) { powerOffs.append(true) }
    storm(device, size: PowerManagement.regionSize, seed: seed) { random in
      if Bool.random(using: &random) { clock.now = random.next() }
      if Int.random(in: 0..<8, using: &random) == 0 {
        device.raiseGeneralPurposeEvent(Int.random(in: 0..<64, using: &random))
      }
    }
    #expect(!powerOffs.values.isEmpty)
    device.reset()
    #expect(!line.asserted)
  }

  @Test(arguments: [UInt64(1), 2, 3]) func `ACPI hotplug survives random accesses`(seed: UInt64) {
    let ejects = Calls<Int>()
    let reports = Calls<Int>()
    let device = ACPIHotplug(
      slotCount: 3, raise: {}, onEject: { ejects.append($0) }, onStatus: { slot, _, _ in reports.append(slot) })
    storm(device, size: ACPIHotplug.regionSize, seed: seed) { random in
      let slot = Int.random(in: 0..<3, using: &random)
      switch Int.random(in: 0..<6, using: &random) {
      case 0: device.inserted(slot)
      case 1: device.requestRemoval(slot)
      case 2: device.emptied(slot, announcing: Bool.random(using: &random))
      // Mostly selects existing slots.
      default: device.write(offset: 0x10, width: .doubleword, value: UInt64.random(in: 0..<4, using: &random))
      }
    }
    #expect(Set(ejects.values) == [0, 1, 2])
    #expect(Set(reports.values) == [0, 1, 2])
    device.reset()
    device.inserted(0)
    #expect(device.read(offset: 0x20, width: .doubleword) == 0)
  }
}
