import Devices
import Hardware
import Testing

@Suite struct CMOSClockTests {
  /// 2024-02-29 13:05:09 UTC, a Thursday.
  static let leapDay: Int64 = 1_709_211_909
  let host = TestClock(ClockReading(seconds: leapDay, nanoseconds: 250_000_000))
  let clock: CMOSClock

  init() { clock = CMOSClock { [host] in host.now } }

  private func read(_ address: UInt8) -> UInt8 {
    clock.writeByte(0, address)
    return clock.readByte(1)
  }

  private func write(_ address: UInt8, _ value: UInt8) {
    clock.writeByte(0, address)
    clock.writeByte(1, value)
  }

  private func advance(seconds: Int64 = 0, nanoseconds: Int64 = 0) {
    host.now = ClockReading(seconds: host.now.seconds + seconds, nanoseconds: host.now.nanoseconds + nanoseconds)
  }

  /// Second, minute, hour, day of week, day, month, year, century.
  private var time: [UInt8] { [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32].map(read) }

  /// Sets the time like Linux's mc146818_set_time: stops the clock, writes the time, and restores the control register,
  /// then the dividers.
  private func setTime(_ values: [UInt8]) {
    let (control, frequency) = (read(0x0b), read(0x0a))
    write(0x0b, control | 0x80)
    write(0x0a, frequency | 0x70)
    for (address, value) in zip([UInt8(0x00), 0x02, 0x04, 0x07, 0x08, 0x09, 0x32], values) { write(address, value) }
    write(0x0b, control)
    write(0x0a, frequency)
  }

  @Test("the clock powers on with the host's time in BCD")
  func powersOnWithTheHostsTimeInBCD() {
    #expect(time == [0x09, 0x05, 0x13, 0x05, 0x29, 0x02, 0x24, 0x20])
    #expect(read(0x0a) == 0x26)
    #expect(read(0x0b) == 0x02)
    #expect(read(0x0c) == 0x00)
    #expect(read(0x0d) == 0x80)
  }

  @Test(
    "the control register selects BCD or binary, and 12 or 24 hours",
    arguments: [
      (0x00, [0x09, 0x05, 0x81, 0x05, 0x29, 0x02, 0x24, 0x20]),
      (0x02, [0x09, 0x05, 0x13, 0x05, 0x29, 0x02, 0x24, 0x20]),
      (0x04, [9, 5, 0x81, 5, 29, 2, 24, 20]),
      (0x06, [9, 5, 13, 5, 29, 2, 24, 20]),
    ] as [(UInt8, [UInt8])])
  func formats(control: UInt8, expected: [UInt8]) {
    write(0x0b, control)
    #expect(time == expected)
  }

  @Test(
    "on the 12-hour clock midnight is 12 in the morning and noon 12 in the afternoon",
    arguments: [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] as [(Int64, UInt8)])
  func hoursOfTheTwelveHourClock(hour: Int64, expected: UInt8) {
    write(0x0b, 0x00)
    host.now = ClockReading(seconds: hour * 3600, nanoseconds: 0)
    #expect(read(0x04) == expected)
    setTime([0x00, 0x00, expected, 0x01, 0x01, 0x70, 0x19])
    write(0x0b, 0x06)
    #expect(Int64(read(0x04)) == hour)
  }

  /// Seconds since 1970, and in binary: second, minute, hour, day of week, day, month, year, century.
  @Test(
    "dates follow the calendar over leap years and centuries",
    arguments: [
      (0, [0, 0, 0, 5, 1, 1, 70, 19]),
      (951_782_399, [59, 59, 23, 2, 28, 2, 0, 20]),
      (951_782_400, [0, 0, 0, 3, 29, 2, 0, 20]),
      (951_868_800, [0, 0, 0, 4, 1, 3, 0, 20]),
      (1_735_689_599, [59, 59, 23, 3, 31, 12, 24, 20]),
      (4_107_542_400, [0, 0, 0, 2, 1, 3, 0, 21]),
      (-1, [59, 59, 23, 4, 31, 12, 69, 19]),
      (253_402_300_799, [59, 59, 23, 6, 31, 12, 99, 99]),
      (.max, [59, 59, 23, 6, 31, 12, 99, 99]),
      (.min, [0, 0, 0, 7, 1, 1, 0, 0]),
    ] as [(Int64, [UInt8])])
  func calendar(seconds: Int64, expected: [UInt8]) {
    write(0x0b, 0x06)
    host.now = ClockReading(seconds: seconds, nanoseconds: 0)
    #expect(time == expected)
  }

  @Test("update-in-progress is set during the 244 microseconds before an update")
  func updateInProgressIsShortAndWarnsOfTheUpdate() {
    let second = Self.leapDay
    host.now = ClockReading(seconds: second, nanoseconds: 999_755_999)
    #expect(read(0x0a) == 0x26)
    host.now = ClockReading(seconds: second, nanoseconds: 999_756_000)
    #expect(read(0x0a) == 0xa6)
    host.now = ClockReading(seconds: second + 1, nanoseconds: 0)
    #expect(read(0x0a) == 0x26)
    #expect(read(0x00) == 0x10)
    // A stopped clock has no updates.
    host.now = ClockReading(seconds: second, nanoseconds: 999_999_999)
    write(0x0b, 0x82)
    #expect(read(0x0a) == 0x26)
  }

  @Test("the clock runs on from the time that the guest sets, also after a reset")
  func settingTheTimeKeepsAnOffset() {
    setTime([0x58, 0x59, 0x23, 0x31, 0x12, 0x99, 0x19])
    #expect(time == [0x58, 0x59, 0x23, 0x06, 0x31, 0x12, 0x99, 0x19])
    // The dividers have restarted: the first update follows after half a second.
    advance(nanoseconds: 499_999_999)
    #expect(read(0x00) == 0x58)
    advance(nanoseconds: 1)
    #expect(read(0x00) == 0x59)
    advance(seconds: 1)
    #expect(time == [0x00, 0x00, 0x00, 0x07, 0x01, 0x01, 0x00, 0x20])
    clock.reset()
    #expect(read(0x08) == 0x01)
    #expect(read(0x09) == 0x00)
  }

  @Test("the registers of a stopped clock keep what is written")
  func stoppedRegistersAreMemory() {
    write(0x0b, 0x82)
    write(0x00, 0xee)
    write(0x06, 0x07)
    advance(seconds: 100)
    #expect(read(0x00) == 0xee)
    #expect(read(0x06) == 0x07)
    #expect(read(0x02) == 0x05)
  }

  @Test("setting the time without a divider reset keeps the fraction of the second")
  func withoutDividerResetTheSecondsPhaseStays() {
    write(0x0b, 0x82)
    write(0x00, 0x30)
    write(0x0b, 0x02)
    advance(nanoseconds: 749_999_999)
    #expect(read(0x00) == 0x30)
    advance(nanoseconds: 1)
    #expect(read(0x00) == 0x31)
  }

  @Test("a write to a time register of a running clock takes effect at once")
  func aRunningClockTakesEachRegisterAtOnce() {
    write(0x02, 0x59)
    write(0x04, 0x22)
    #expect(time == [0x09, 0x59, 0x22, 0x05, 0x29, 0x02, 0x24, 0x20])
    advance(seconds: 60)
    #expect(time == [0x09, 0x00, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20])
  }

  @Test("an impossible time carries over into the larger units")
  func timesThatDoNotExistCarry() {
    setTime([0x75, 0x59, 0x23, 0x31, 0x12, 0x24, 0x20])
    #expect(time == [0x15, 0x00, 0x00, 0x04, 0x01, 0x01, 0x25, 0x20])
    setTime([0x00, 0x00, 0x00, 0x00, 0x00, 0x25, 0x20])  // Month 0, day 0.
    #expect(Array(time[4...]) == [0x30, 0x11, 0x24, 0x20])
  }

  @Test("CMOS RAM keeps its bytes")
  func memoryKeepsItsBytes() {
    for address in UInt8(0x0e)..<0x80 where address != 0x32 { write(address, address ^ 0xff) }
    for address in UInt8(0x0e)..<0x80 where address != 0x32 { #expect(read(address) == address ^ 0xff) }
    write(0x80 | 0x70, 0x11)  // Bit 7 masks NMI.
    #expect(read(0x70) == 0x11)
    #expect(clock.readByte(0) == 0xff)
    clock.write(offset: 0, width: .word, value: 0x4433)
    #expect(clock.read(offset: 0, width: .word) == 0x44ff)
    #expect(read(0x33) == 0x44)
  }

  // MARK: Flags

  @Test("an update sets update-ended, which a read clears and which requests an interrupt when enabled")
  func updateEndedIsSetOncePerReadAndRequestsWhenEnabled() {
    write(0x0a, 0x20)  // No periodic rate.
    write(0x01, 0xfe)  // No alarm either: any second matches, but no minute is 0x7f.
    write(0x03, 0x7f)
    #expect(read(0x0c) == 0)
    advance(seconds: 1)
    #expect(read(0x0c) == 0x10)
    #expect(read(0x0c) == 0)
    write(0x0b, 0x12)
    advance(seconds: 5)
    #expect(read(0x0c) == 0x90)
    #expect(read(0x0c) == 0)
    write(0x0b, 0x82)
    advance(seconds: 5)
    #expect(read(0x0c) == 0)
  }

  /// Alarm second, minute and hour (BCD; with the top bits set, any value), and the seconds from 13:05:09 until it
  /// matches.
  @Test(
    "an alarm matches once, at its time",
    arguments: [
      ([0x10, 0x05, 0x13], 1),
      ([0x09, 0x05, 0x13], 86_400),
      ([0x08, 0x05, 0x13], 86_399),
      ([0x00, 0x06, 0xff], 51),
      ([0x08, 0xff, 0xff], 59),
      ([0xff, 0x04, 0xff], 3_531),
      ([0x00, 0x00, 0x12], 82_491),
      ([0xff, 0xff, 0xff], 1),
      ([0xc0, 0xc0, 0x14], 3_291),
    ] as [([UInt8], Int64)])
  func alarms(registers: [UInt8], delay: Int64) {
    for (address, value) in zip([UInt8(0x01), 0x03, 0x05], registers) { write(address, value) }
    _ = read(0x0c)
    advance(seconds: delay - 1)
    #expect(read(0x0c) & 0x20 == 0)
    advance(seconds: 1)
    #expect(read(0x0c) & 0x20 == 0x20)
    #expect(read(0x0c) & 0x20 == 0)
  }

  @Test("an alarm time that passes between two reads sets the alarm flag")
  func anAlarmBetweenTwoReadsIsSeen() {
    write(0x01, 0x30)
    write(0x03, 0xff)
    write(0x05, 0xff)
    write(0x0b, 0x22)
    advance(seconds: 40)
    #expect(read(0x0c) & 0xa0 == 0xa0)
  }

  /// Rate and period in nanoseconds, rounded up.
  @Test(
    "the periodic flag is set after each period",
    arguments: [(0x03, 122_071), (0x06, 976_563), (0x0f, 500_000_000), (0x01, 3_906_250)] as [(UInt8, Int64)])
  func periodicRates(rate: UInt8, period: Int64) {
    host.now = ClockReading(seconds: Self.leapDay, nanoseconds: 0)
    write(0x0a, 0x20 | rate)
    _ = read(0x0c)
    advance(nanoseconds: period - 2)
    #expect(read(0x0c) & 0x40 == 0)
    advance(nanoseconds: 2)
    #expect(read(0x0c) & 0x40 == 0x40)
  }

  @Test("a reset disables interrupts and keeps format and memory")
  func resetDisablesInterruptsOnly() {
    write(0x0b, 0x76)
    write(0x40, 0x5a)
    advance(seconds: 2)
    clock.reset()
    #expect(clock.readByte(1) == 11)  // The index selects the seconds again.
    #expect(read(0x0b) == 0x06)
    #expect(read(0x40) == 0x5a)
  }

  /// Linux's mc146818_avoid_UIP reads the seconds, sees UIP clear, reads everything, and sees UIP clear and the seconds
  /// unchanged.
  @Test("Linux's loop for a consistent time needs one pass")
  func linuxReadsTheTimeInOneTurn() {
    let second = read(0x00)
    #expect(read(0x0a) & 0x80 == 0)
    let first = time
    #expect(read(0x0a) & 0x80 == 0)
    #expect(read(0x00) == second)
    #expect(first == time)
  }
}
