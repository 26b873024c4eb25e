import Hardware

/// A real-time clock with CMOS RAM as a value (Motorola MC146818A data sheet; the FADT declares the century byte 0x32).
/// `CMOSClock` connects it to the machine.
///
/// The time is the host's plus an offset, which changes when the guest sets the clock. The time and register C's flags
/// are computed on access, so a guest can poll them. There is no timer: register B's enable bits read back and
/// determine IRQF, but no interrupt is raised. If the clock starts from an invalid time (second 75), the time carries.
/// The day of the week follows from the date.
struct MC146818: Sendable {
  /// Addresses within the RAM.
  enum Register {
    static let second = 0x00
    static let secondAlarm = 0x01
    static let minute = 0x02
    static let minuteAlarm = 0x03
    static let hour = 0x04
    static let hourAlarm = 0x05
    static let dayOfWeek = 0x06
    static let day = 0x07
    static let month = 0x08
    static let year = 0x09
    static let a = 0x0a
    static let b = 0x0b
    static let c = 0x0c
    static let d = 0x0d
    static let century = 0x32
  }

  /// Register B.
  private enum B {
    /// 24/12: hours are 0 to 23.
    static let hours24: UInt8 = 0x02
    /// DM: binary, not BCD.
    static let binary: UInt8 = 0x04
    /// SET: the time registers do not advance.
    static let set: UInt8 = 0x80
  }

  /// Register C. PF, AF and UF have the same bits as PIE, AIE and UIE in register B.
  private enum C {
    /// UF
    static let updateEnded: UInt8 = 0x10
    /// AF
    static let alarm: UInt8 = 0x20
    /// PF
    static let periodic: UInt8 = 0x40
    /// IRQF
    static let interruptRequest: UInt8 = 0x80
  }

  /// Bit 7 of the hours: PM, if hours are 1 to 12.
  private static let afternoon: UInt8 = 0x80

  /// The time for which UIP is set before an update, in nanoseconds (t_BUC, 244 microseconds).
  private static let updateWarning: Int64 = 244_000

  private var memory: [UInt8]
  /// The guest's time minus the host's.
  private var offset: (seconds: Int64, nanoseconds: Int64) = (0, 0)
  /// Register C's flags at the last update.
  private var flags: UInt8 = 0
  /// The time of the last update of `flags`: the guest's second, and the host's time.
  private var flagsSecond: Int64
  private var flagsTime: ClockReading

  /// - Parameter now: the host's time.
  init(now: ClockReading) {
    memory = [UInt8](repeating: 0, count: 128)
    memory[Register.a] = 0x26  // 32.768 kHz time base, periodic rate 1024 Hz.
    memory[Register.b] = B.hours24
    flagsSecond = now.seconds
    flagsTime = now
  }

  /// Acts on the RESET pin: disables interrupts, but does not affect the time, the RAM and the dividers.
  mutating func reset() {
    memory[Register.b] &= B.set | B.hours24 | B.binary | 0x01
    flags = 0
  }

  /// - Parameter address: only bits 6:0 are decoded.
  mutating func read(_ address: UInt8, now: ClockReading) -> UInt8 {
    let address = Int(address & 0x7f)
    switch address {
    case Register.a:
      return memory[Register.a] | (isUpdateNear(now) ? 0x80 : 0)
    case Register.c:
      updateFlags(now)
      let requests = flags & memory[Register.b] & (C.periodic | C.alarm | C.updateEnded) != 0
      defer { flags = 0 }
      return flags | (requests ? C.interruptRequest : 0)
    case Register.d:
      return 0x80  // VRT: the battery is good.
    default:
      if isRunning, Self.showsTime(address) { latch(now) }
      return memory[address]
    }
  }

  /// - Parameter address: only bits 6:0 are decoded.
  mutating func write(_ value: UInt8, to address: UInt8, now: ClockReading) {
    let address = Int(address & 0x7f)
    updateFlags(now)
    let wasRunning = isRunning
    let wasReset = dividersAreReset
    // Store the current time in the current format, before the write changes the time or the format.
    if wasRunning { latch(now) }
    switch address {
    case Register.a: memory[address] = value & 0x7f
    case Register.c, Register.d: return
    default: memory[address] = value
    }
    if isRunning, !wasRunning || Self.showsTime(address) {
      // The first update follows half a second after the release of the dividers.
      start(now, nanoseconds: wasReset ? ClockReading.nanosecondsPerSecond / 2 : guestTime(now).nanoseconds)
    }
  }

  // MARK: Time

  /// Whether register A bits 6:5 are both set: the divider chain is held in reset.
  private var dividersAreReset: Bool { memory[Register.a] & 0x60 == 0x60 }

  /// Whether the clock advances: SET is clear, and bits 6:4 of register A select one of the three time bases.
  private var isRunning: Bool { memory[Register.b] & B.set == 0 && memory[Register.a] & 0x70 <= 0x20 }

  private func guestTime(_ now: ClockReading) -> ClockReading {
    ClockReading(seconds: now.seconds + offset.seconds, nanoseconds: now.nanoseconds + offset.nanoseconds)
  }

  private func isUpdateNear(_ now: ClockReading) -> Bool {
    isRunning && guestTime(now).nanoseconds >= ClockReading.nanosecondsPerSecond - Self.updateWarning
  }

  private static func showsTime(_ address: Int) -> Bool {
    switch address {
    case Register.second, Register.minute, Register.hour, Register.dayOfWeek, Register.day, Register.month,
      Register.year, Register.century:
      return true
    default:
      return false
    }
  }

  /// Stores the current time in the time registers.
  private mutating func latch(_ now: ClockReading) {
    let time = CalendarTime(secondsSince1970: guestTime(now).seconds)
    memory[Register.second] = encode(time.second)
    memory[Register.minute] = encode(time.minute)
    memory[Register.hour] = encodeHour(time.hour)
    memory[Register.dayOfWeek] = encode(time.dayOfWeek)
    memory[Register.day] = encode(time.day)
    memory[Register.month] = encode(time.month)
    memory[Register.year] = encode(time.year % 100)
    memory[Register.century] = encode(time.year / 100)
  }

  /// Starts the clock from the time in the time registers.
  private mutating func start(_ now: ClockReading, nanoseconds: Int64) {
    let time = CalendarTime(
      year: decode(memory[Register.century]) * 100 + decode(memory[Register.year]),
      month: decode(memory[Register.month]), day: decode(memory[Register.day]),
      hour: decodeHour(memory[Register.hour]), minute: decode(memory[Register.minute]),
      second: decode(memory[Register.second]))
    let target = ClockReading(seconds: time.secondsSince1970, nanoseconds: nanoseconds)
    offset = (target.seconds - now.seconds, target.nanoseconds - now.nanoseconds)
    flagsSecond = target.seconds
  }

  // MARK: Formats

  private func encode(_ value: Int64) -> UInt8 {
    let value = UInt8(truncatingIfNeeded: value)
    return memory[Register.b] & B.binary != 0 ? value : (value / 10) << 4 | value % 10
  }

  private func decode(_ value: UInt8) -> Int64 {
    memory[Register.b] & B.binary != 0 ? Int64(value) : Int64(value >> 4) * 10 + Int64(value & 0xf)
  }

  private func encodeHour(_ hour: Int64) -> UInt8 {
    if memory[Register.b] & B.hours24 != 0 { return encode(hour) }
    return encode(hour % 12 == 0 ? 12 : hour % 12) | (hour >= 12 ? Self.afternoon : 0)
  }

  private func decodeHour(_ value: UInt8) -> Int64 {
    if memory[Register.b] & B.hours24 != 0 { return decode(value) }
    return decode(value & ~Self.afternoon) % 12 + (value & Self.afternoon != 0 ? 12 : 0)
  }

  // MARK: Flags

  private mutating func updateFlags(_ now: ClockReading) {
    if now > flagsTime {
      if periods(now) != periods(flagsTime) { flags |= C.periodic }
    }
    flagsTime = now
    guard isRunning else { return }
    let second = guestTime(now).seconds
    if second > flagsSecond {
      flags |= C.updateEnded
      if let alarm = nextAlarm(after: flagsSecond), alarm <= second { flags |= C.alarm }
    }
    flagsSecond = second
  }

  /// Returns the number of periods of the periodic rate (register A bits 3:0) since 1970.
  private func periods(_ time: ClockReading) -> Int64 {
    let rate = Int64(memory[Register.a] & 0xf)
    if rate == 0 || dividersAreReset { return 0 }
    let ticks = time.seconds * 32_768 + time.nanoseconds * 32_768 / ClockReading.nanosecondsPerSecond
    // With this time base, rates 1 and 2 equal rates 8 and 9.
    return ticks >> (rate <= 2 ? rate + 6 : rate - 1)
  }

  /// Returns the first second after `start` at which the alarm registers match; nil if they match no time of day.
  private func nextAlarm(after start: Int64) -> Int64? {
    // Both top bits set ("don't care"): any value matches.
    func wanted(_ address: Int, _ decode: (UInt8) -> Int64) -> Int64? {
      memory[address] & 0xc0 == 0xc0 ? nil : decode(memory[address])
    }
    let (second, minute) = (wanted(Register.secondAlarm, decode), wanted(Register.minuteAlarm, decode))
    let hour = wanted(Register.hourAlarm, decodeHour)
    var candidate = start + 1
    // Each iteration but the last advances to the next hour, minute or second: at most through all hours of a day
    // twice, and then through all minutes and seconds once.
    for _ in 0..<2 * 24 + 60 + 60 {
      let time = CalendarTime(secondsSince1970: candidate)
      if let hour, hour != time.hour {
        candidate += 3_600 - time.minute * 60 - time.second
      } else if let minute, minute != time.minute {
        candidate += 60 - time.second
      } else if let second, second != time.second {
        candidate += 1
      } else {
        return candidate
      }
    }
    return nil
  }
}
