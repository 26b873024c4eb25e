import Hardware

/// The ACPI fixed hardware of the board as a value (ACPI 6.5, section 4.8): PM1 event and control blocks, the power
/// management timer, and general-purpose event block 0. `PowerManagement` connects it to the machine.
///
///     0x00 PM1_STS  0x02 PM1_EN  0x04 PM1_CNT  0x08 PM_TMR  0x20 GPE0_STS (8)  0x28 GPE0_EN (8)
///
/// The registers are accessed by bytes, so an access of any width may span several. The timer's carry (TMR_STS) is
/// detected at accesses to the registers only, so it does not raise SCI before an access.
struct PowerManagementRegisters: Sendable {
  /// The bits of PM1_STS and PM1_EN.
  struct Events: OptionSet, Hashable, Sendable {
    let rawValue: UInt16

    /// TMR: bit 23 of the timer changed.
    static let timer = Events(rawValue: 1 << 0)
    /// GBL
    static let globalLock = Events(rawValue: 1 << 5)
    /// PWRBTN
    static let powerButton = Events(rawValue: 1 << 8)
    /// SLPBTN
    static let sleepButton = Events(rawValue: 1 << 9)
    /// RTC
    static let realTimeClock = Events(rawValue: 1 << 10)

    static let enables: Events = [.timer, .globalLock, .powerButton, .sleepButton, .realTimeClock]
  }

  private enum Control {
    /// SCI_EN: always set, because there is no SMI that could deliver the events (FADT: SMI_CMD zero).
    static let sciEnable: UInt16 = 1 << 0
    /// BM_RLD (bit 1) and SLP_TYP (bits 12:10) read back. GBL_RLS (bit 2) and SLP_EN (bit 13) are write-only; GBL_RLS
    /// has no effect, because there is no firmware.
    static let stored: UInt16 = 1 << 1 | 7 << 10
    static let sleepEnable: UInt16 = 1 << 13
  }

  /// The frequency of PM_TMR in Hz (ACPI 6.5, section 4.8.2.1).
  static let timerFrequency: UInt64 = 3_579_545

  private var status: Events = []
  private var enabled: Events = []
  private var control: UInt16 = 0
  private var generalStatus: UInt64 = 0
  private var generalEnabled: UInt64 = 0
  /// The number of changes of the timer's bit 23 at the last access.
  private var carries: UInt64 = 0

  init(nanoseconds: UInt64) {
    carries = Self.ticks(nanoseconds) >> 23
  }

  /// The level of SCI.
  var systemControlInterrupt: Bool {
    !status.isDisjoint(with: enabled) || generalStatus & generalEnabled != 0
  }

  mutating func raise(_ events: Events) { status.formUnion(events) }

  /// - Parameter event: 0 to 63.
  mutating func raiseGeneral(_ event: Int) { generalStatus[bit: event] = true }

  /// - Parameter nanoseconds: of a monotonic clock.
  mutating func read(offset: UInt64, width: AccessWidth, nanoseconds: UInt64) -> UInt64 {
    let ticks = noteCarry(nanoseconds)
    return width.assemble(from: offset) { byte(at: $0, ticks: ticks) }
  }

  /// - Parameter nanoseconds: of a monotonic clock.
  /// - Returns: the sleep type that the guest enters (SLP_TYP when it writes SLP_EN), or nil.
  mutating func write(offset: UInt64, width: AccessWidth, value: UInt64, nanoseconds: UInt64) -> UInt8? {
    _ = noteCarry(nanoseconds)
    var sleep: UInt8?
    width.split(value, from: offset) { if let type = writeByte($1, at: $0) { sleep = type } }
    return sleep
  }

  private func byte(at offset: UInt64, ticks: UInt64) -> UInt8 {
    switch offset {
    case 0x00...0x01: return status.rawValue[byte: offset]
    case 0x02...0x03: return enabled.rawValue[byte: offset - 0x02]
    case 0x04...0x05: return (control | Control.sciEnable)[byte: offset - 0x04]
    case 0x08...0x0b: return (ticks & 0xff_ffff)[byte: offset - 0x08]
    case 0x20...0x27: return generalStatus[byte: offset - 0x20]
    case 0x28...0x2f: return generalEnabled[byte: offset - 0x28]
    default: return 0
    }
  }

  private mutating func writeByte(_ byte: UInt8, at offset: UInt64) -> UInt8? {
    switch offset {
    case 0x00...0x01:
      status.subtract(Events(rawValue: UInt16(byte) << (8 * offset)))
    case 0x02...0x03:
      var value = enabled.rawValue
      value[byte: offset - 0x02] = byte
      enabled = Events(rawValue: value).intersection(.enables)
    case 0x04...0x05:
      var value = control
      value[byte: offset - 0x04] = byte
      control = value & Control.stored
      if value & Control.sleepEnable != 0 { return UInt8(truncatingIfNeeded: value[bits: 10...12]) }
    case 0x20...0x27:
      generalStatus &= ~(UInt64(byte) << (8 * (offset - 0x20)))
    case 0x28...0x2f:
      generalEnabled[byte: offset - 0x28] = byte
    default:
      break
    }
    return nil
  }

  /// Returns the timer, not truncated to its 24 bits.
  private static func ticks(_ nanoseconds: UInt64) -> UInt64 {
    let product = nanoseconds.multipliedFullWidth(by: timerFrequency)
    // The high half is below the frequency, which is below the divisor, so the quotient fits.
    return (1_000_000_000 as UInt64).dividingFullWidth(product).quotient
  }

  private mutating func noteCarry(_ nanoseconds: UInt64) -> UInt64 {
    let ticks = Self.ticks(nanoseconds)
    // The readings of two vCPUs may arrive out of order.
    if ticks >> 23 > carries {
      carries = ticks >> 23
      status.insert(.timer)
    }
    return ticks
  }
}
