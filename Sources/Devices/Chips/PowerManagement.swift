import Hardware
import Synchronization

/// The wiring of the ACPI fixed hardware: its block of I/O ports, SCI, the clock and the power switch.
///
/// Lock order: this lock, then the interrupt line's. The clock is read before the lock is taken; the
/// power-off handler is called without it, on the vCPU's thread.
public final class PowerManagement: BusDevice {
  /// Size of the I/O region, in bytes.
  public static let regionSize: UInt64 = 128

  /// SLP_TYP of S5, the one sleep state that the DSDT offers (`\_S5`); writing another does nothing.
  public static let softOffSleepType: UInt8 = 0

  private let registers: Mutex<PowerManagementRegisters>
  private let clock: @Sendable () -> UInt64
  private let interrupt: any InterruptLine
  private let onPowerOff: @Sendable () -> Void

  /// - Parameters:
  ///   - clock: nanoseconds of a clock that never goes back.
  ///   - interrupt: SCI, asserted while an enabled event is pending.
  ///   - onPowerOff: the guest has entered S5.
  public init(
    clock: @escaping @Sendable () -> UInt64, interrupt: any InterruptLine, onPowerOff: @escaping @Sendable () -> Void
  ) {
    self.clock = clock
    self.interrupt = interrupt
    self.onPowerOff = onPowerOff
    registers = Mutex(PowerManagementRegisters(nanoseconds: clock()))
  }

  /// The button, as a person presses it: the guest is asked to shut down.
  public func pressPowerButton() { update { $0.raise(.powerButton) } }

  /// A general-purpose event of block 0, as the DSDT's `_Lxx` and `_Exx` methods number them.
  /// - Parameter event: 0 to 63.
  public func raiseGeneralPurposeEvent(_ event: Int) {
    precondition((0..<64).contains(event), "GPE block 0 has 64 events")
    update { $0.raiseGeneral(event) }
  }

  public func reset() {
    let now = clock()
    update { $0 = PowerManagementRegisters(nanoseconds: now) }
  }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    let now = clock()
    return update { $0.read(offset: offset, width: width, nanoseconds: now) }
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    let now = clock()
    let sleep = update { $0.write(offset: offset, width: width, value: value, nanoseconds: now) }
    if sleep == Self.softOffSleepType { onPowerOff() }
  }

  private func update<Result: Sendable>(_ body: (inout PowerManagementRegisters) -> Result) -> Result {
    registers.withLock { registers in
      let result = body(&registers)
      interrupt.set(registers.systemControlInterrupt)
      return result
    }
  }
}
