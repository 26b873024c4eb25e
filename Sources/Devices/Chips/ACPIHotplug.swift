import Hardware
import Synchronization

/// The wiring of the hot-plug registers (`ACPIHotplugRegisters`): ports that the DSDT's methods use, and the
/// general-purpose event that runs them.
///
/// Slots are numbered from zero, in the order of the addresses of the machine's hot-pluggable root ports.
///
/// Lock order: the lock is a leaf. The handlers are called without it: those of what the guest does on the vCPU's thread,
/// `raise` on that of the caller, after the guest can read what it is about.
public final class ACPIHotplug: BusDevice {
  /// Size of the I/O region, in bytes.
  public static let regionSize = ACPIHotplugRegisters.size
  /// The DSDT's `_E01`.
  public static let generalPurposeEvent = 1

  public let slotCount: Int
  private let registers: Mutex<ACPIHotplugRegisters>
  private let raise: @Sendable () -> Void
  private let onEject: @Sendable (Int) -> Void
  private let onRelease: @Sendable (Int) -> Void
  private let onStatus: @Sendable (_ slot: Int, _ source: UInt32, _ status: UInt32) -> Void
  private let onAnnouncementRead: (@Sendable (Announcement) -> Void)?

  /// What the guest has read of a slot.
  public enum Announcement: Hashable, Sendable {
    /// Whether a device has appeared.
    case up(slot: Int, Bool)
    /// Whether a device is to be ejected.
    case down(slot: Int, Bool)
  }

  /// - Parameters:
  ///   - raise: raises `generalPurposeEvent`.
  ///   - onEject: the guest gives back the device of an occupied slot, asked to or not. The slot counts as empty already.
  ///   - onRelease: the guest has dropped the device that was pulled out of a slot.
  ///   - onStatus: what the guest says of an event (_OST; ACPI 6.5, 6.3.5). Any numbers: they are the guest's.
  ///   - onAnnouncementRead: the guest has looked whether something is announced. Waits for nothing.
  public init(
    slotCount: Int, raise: @escaping @Sendable () -> Void, onEject: @escaping @Sendable (Int) -> Void,
    onRelease: @escaping @Sendable (Int) -> Void = { _ in },
    onStatus: @escaping @Sendable (_ slot: Int, _ source: UInt32, _ status: UInt32) -> Void = { _, _, _ in },
    onAnnouncementRead: (@Sendable (Announcement) -> Void)? = nil
  ) {
    self.slotCount = slotCount
    self.raise = raise
    self.onEject = onEject
    self.onRelease = onRelease
    self.onStatus = onStatus
    self.onAnnouncementRead = onAnnouncementRead
    registers = Mutex(ACPIHotplugRegisters(slotCount: slotCount))
  }

  /// A slot's device is complete, function 0 included.
  /// - Parameter announcing: false at the start of the machine: the guest finds the device by itself.
  public func inserted(_ slot: Int, announcing: Bool = true) {
    announce { $0.insert(slot, announced: announcing) }
  }

  /// Asks the guest to give the device back. Nothing happens where the slot is empty. Asking again announces it again.
  public func requestRemoval(_ slot: Int) { announce { $0.requestRemoval(slot) } }

  /// The device is gone from its slot.
  /// - Parameter announcing: true where the guest did not give it back (surprise removal): it is asked to drop it.
  public func emptied(_ slot: Int, announcing: Bool = false) {
    announce { $0.empty(slot, announced: announcing) }
  }

  /// Whether the guest may still have a device that was pulled out. A next device should not answer before the guest has
  /// dropped that one (`onRelease`), or the old one's driver takes it for its own. A guest that knows nothing of hot plug
  /// never does: the wait wants a limit.
  public func awaitsRelease(_ slot: Int) -> Bool { registers.withLock { $0.awaitsRelease(slot) } }

  /// Devices stay; what was to be announced is forgotten.
  public func reset() { registers.withLock { $0.reset() } }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    let (value, slot) = registers.withLock { ($0.read(offset: offset, width: width), $0.selected) }
    if let onAnnouncementRead, let slot {
      switch offset {
      case ACPIHotplugRegisters.Offset.up: onAnnouncementRead(.up(slot: slot, value & 1 != 0))
      case ACPIHotplugRegisters.Offset.down: onAnnouncementRead(.down(slot: slot, value & 1 != 0))
      default: break
      }
    }
    return value
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    let effects = registers.withLock { $0.write(offset: offset, width: width, value: value) }
    if let slot = effects.ejected { onEject(slot) }
    if let slot = effects.released { onRelease(slot) }
    if let report = effects.report { onStatus(report.slot, report.source, report.status) }
    if effects.raisesEvent { raise() }
  }

  private func announce(_ change: (inout ACPIHotplugRegisters) -> Bool) {
    if registers.withLock({ change(&$0) }) { raise() }
  }
}
