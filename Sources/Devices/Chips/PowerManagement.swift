import Hardware
import Synchronization

/// Connects the ACPI fixed hardware (`PowerManagementRegisters`) to the machine: to its block of I/O ports, SCI, the
/// clock and the power switch.
///
/// Lock order: this object's lock, then the interrupt line's. The clock is read before the lock is taken. The power-off
/// handler is called without the lock, on the vCPU's thread.
public final class PowerManagement: BusDevice {
  public static let regionSize: UInt64 = 128

  /// SLP_TYP of S5, the only sleep state that the DSDT offers (`\_S5`); other values have no effect.
  public static let softOffSleepType: UInt8 = 0

  private let registers: Mutex<PowerManagementRegisters>
  private let clock: @Sendable () -> UInt64
  private let interrupt: any InterruptLine
  private let onPowerOff: @Sendable () -> Void

  /// - Parameters:
  ///   - clock: returns the nanoseconds of a monotonic clock.
  ///   - interrupt: SCI, asserted while an enabled event is pending.
  ///   - onPowerOff: called when the guest enters S5.
  public init(
    clock: @escaping @Sendable () -> UInt64, interrupt: any InterruptLine, onPowerOff: @escaping @Sendable () -> Void
  ) {
    self.clock = clock
    self.interrupt = interrupt
    self.onPowerOff = onPowerOff
    registers = Mutex(PowerManagementRegisters(nanoseconds: clock()))
  }

  /// Presses the power button, which asks the guest to shut down.
  public func pressPowerButton() { update { $0.raise(.powerButton) } }

  /// Raises a general-purpose event of block 0, by its number in the DSDT's `_Lxx` and `_Exx` methods.
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
