import Devices
import Hardware
import TestSupport
import Testing

@Suite struct PowerManagementTests {
  let clock = TestClock<UInt64>(0)
  let line = RecordingLine()
  let powerOffs = Calls<Bool>()
  let device: PowerManagement

  init() {
    device = PowerManagement(clock: { [clock] in clock.now }, interrupt: line) { [powerOffs] in powerOffs.append(true) }
  }

  private func read(_ offset: UInt64, _ width: AccessWidth = .word) -> UInt64 {
    device.read(offset: offset, width: width)
  }

  private func write(_ offset: UInt64, _ value: UInt64, _ width: AccessWidth = .word) {
    device.write(offset: offset, width: width, value: value)
  }

  @Test("power management powers on in ACPI mode")
  func powersOnInACPIMode() {
    #expect(read(0x00, .quadword) == 0x0000_0001_0000_0000)
    #expect(read(0x30, .quadword) == 0)
    #expect(!line.asserted)
  }

  @Test("the power button raises the SCI until the guest clears it")
  func powerButtonRaisesSCIUntilTheGuestClearsIt() {
    write(0x02, 0x0100)
    device.pressPowerButton()
    #expect(read(0x00) == 0x0100)
    #expect(line.asserted)
    write(0x00, 0x0200)
    #expect(line.asserted)
    write(0x00, 0x0100)
    #expect(read(0x00) == 0)
    #expect(!line.asserted)
  }

  @Test("an event that is not enabled raises the SCI once it is enabled")
  func anEventThatIsNotEnabledWaits() {
    device.pressPowerButton()
    #expect(!line.asserted)
    write(0x03, 0x01, .byte)
    #expect(line.asserted)
    write(0x02, 0)
    #expect(!line.asserted)
    #expect(read(0x00) == 0x0100)
    write(0x01, 0x01, .byte)
    #expect(read(0x00) == 0)
  }

  @Test("the enable register keeps only its defined bits")
  func enablesKeepOnlyTheirBits() {
    write(0x02, 0xffff)
    #expect(read(0x02) == 0x0721)
  }

  @Test("the control register keeps the sleep type, and its SCI enable bit always reads as one")
  func controlKeepsSleepTypeAndAlwaysRoutesToSCI() {
    write(0x04, 0x1c00 | 0x0002)
    #expect(read(0x04) == 0x1c03)
    write(0x04, 0xdfff)
    #expect(read(0x04) == 0x1c03)
    write(0x04, 0)
    #expect(read(0x04) == 0x0001)
    #expect(powerOffs.values.isEmpty)
  }

  @Test("only the sleep type of soft-off powers off", arguments: 0..<8)
  func onlySoftOffPowersOff(type: UInt64) {
    write(0x04, type << 10 | 1)
    #expect(powerOffs.values.isEmpty)
    write(0x04, type << 10 | 0x2001)
    #expect(powerOffs.values.count == (type == 0 ? 1 : 0))
    #expect(read(0x04) == type << 10 | 1)
  }

  @Test("setting sleep enable powers off in a byte write and in a wider write")
  func sleepEnableActsInAByteOrWiderWriteToo() {
    write(0x05, 0x20, .byte)
    write(0x04, 0x2001, .doubleword)
    #expect(powerOffs.values.count == 2)
  }

  /// Nanoseconds, and the timer's value: 3.579545 MHz, 24 bits.
  @Test(
    "the timer counts 3.579545 MHz in 24 bits and is read-only",
    arguments: [
      (0, 0), (279, 0), (280, 1), (1_000_000, 3_579), (1_000_000_000, 3_579_545),
      (4_686_968_874, 0xff_ffff), (4_686_968_875, 0), (.max, 0xa5_bec0),
    ] as [(UInt64, UInt64)])
  func timer(nanoseconds: UInt64, ticks: UInt64) {
    clock.now = nanoseconds
    #expect(read(0x08, .doubleword) == ticks)
    write(0x08, 0x1234, .doubleword)
    #expect(read(0x08, .doubleword) == ticks)
    #expect(read(0x0a, .byte) == ticks >> 16)
  }

  @Test("a change of the timer's top bit is an event")
  func timerCarryIsAnEvent() {
    write(0x02, 0x0001)
    clock.now = 2_343_484_437
    #expect(read(0x08, .doubleword) == 0x7f_ffff)
    #expect(!line.asserted)
    clock.now = 2_343_484_438
    #expect(read(0x00) == 0x0001)
    #expect(line.asserted)
    write(0x00, 0x0001)
    #expect(!line.asserted)
    clock.now = 4_686_968_875
    #expect(read(0x00) == 0x0001)
  }

  @Test("general-purpose events raise the SCI until their status is cleared")
  func generalPurposeEvents() {
    write(0x2d, 0x02, .byte)
    #expect(read(0x28, .quadword) == 0x0000_0200_0000_0000)
    device.raiseGeneralPurposeEvent(41)
    device.raiseGeneralPurposeEvent(3)
    #expect(line.asserted)
    #expect(read(0x20, .quadword) == 0x0000_0200_0000_0008)
    write(0x20, 0xff, .byte)
    #expect(line.asserted)
    write(0x24, 0xffff_ffff, .doubleword)
    #expect(!line.asserted)
    #expect(read(0x20, .quadword) == 0)
  }

  @Test("a reset lowers the SCI")
  func resetLowersSCI() {
    write(0x02, 0x0100)
    device.pressPowerButton()
    device.reset()
    #expect(!line.asserted)
    #expect(read(0x00, .doubleword) == 0)
  }
}
