import Hardware
import Synchronization

/// The reset control register at port 0xCF9 (I/O Controller Hub 9 data sheet, 13.7.5, RST_CNT).
public struct ResetControlRegister: Hashable, Sendable {
  /// The kind of reset that a guest requests.
  public enum Reset: Hashable, Sendable {
    /// SYS_RST clear: INIT to the processors only.
    case processors
    /// SYS_RST set: the whole platform.
    case platform
    /// SYS_RST and FULL_RST set: the whole platform, with a power cycle.
    case powerCycle
  }

  private static let systemReset: UInt8 = 0x02
  private static let resetProcessor: UInt8 = 0x04
  private static let fullReset: UInt8 = 0x08

  public private(set) var value: UInt8 = 0

  public init() {}

  /// - Returns: the reset that starts if RST_CPU changes from 0 to 1.
  public mutating func write(_ new: UInt8) -> Reset? {
    let rises = new & Self.resetProcessor != 0 && value & Self.resetProcessor == 0
    value = new & (Self.systemReset | Self.resetProcessor | Self.fullReset)
    guard rises else { return nil }
    if value & Self.systemReset == 0 { return .processors }
    return value & Self.fullReset == 0 ? .platform : .powerCycle
  }
}

/// Connects a `ResetControlRegister` to the machine: to its byte-wide I/O port, and to the handler of resets.
///
/// Lock order: code that holds the lock takes no other lock. The handler is called without it, on the vCPU's thread.
public final class ResetControl: BusDevice {
  public static let regionSize: UInt64 = 1

  private let register = Mutex(ResetControlRegister())
  private let onReset: @Sendable (ResetControlRegister.Reset) -> Void

  public init(onReset: @escaping @Sendable (ResetControlRegister.Reset) -> Void) {
    self.onReset = onReset
  }

  public func reset() { register.withLock { $0 = ResetControlRegister() } }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    guard offset == 0, width == .byte else { return width.allOnes }
    return UInt64(register.withLock { $0.value })
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    guard offset == 0, width == .byte else { return }
    if let reset = register.withLock({ $0.write(UInt8(truncatingIfNeeded: value)) }) { onReset(reset) }
  }
}

/// The eight ports from 0xCF8, where the reset control register overlaps the configuration address register: a byte
/// access to 0xCF9 goes to the reset control register, all other accesses go to the configuration mechanism.
///
/// A separate region at 0xCF9 would not work: it would split the region at that byte, and then no device would answer
/// the whole of a doubleword access to 0xCF8.
public final class ConfigurationAndResetPorts: BusDevice {
  public static let regionSize: UInt64 = 8

  private let configuration: any BusDevice
  private let resetControl: ResetControl

  /// - Parameter configuration: the configuration mechanism (0xCF8 address, 0xCFC data).
  public init(configuration: any BusDevice, resetControl: ResetControl) {
    self.configuration = configuration
    self.resetControl = resetControl
  }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    isResetControl(offset, width)
      ? resetControl.read(offset: 0, width: width) : configuration.read(offset: offset, width: width)
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    if isResetControl(offset, width) {
      resetControl.write(offset: 0, width: width, value: value)
    } else {
      configuration.write(offset: offset, width: width, value: value)
    }
  }

  private func isResetControl(_ offset: UInt64, _ width: AccessWidth) -> Bool { offset == 1 && width == .byte }
}
