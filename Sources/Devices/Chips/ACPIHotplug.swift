import Hardware
import Synchronization

/// Connects `ACPIHotplugRegisters` to the machine: to the I/O ports that the DSDT's methods use, and to the
/// general-purpose event that runs these methods.
///
/// Slots are numbered from zero, in the order of the addresses of the machine's hot-pluggable root ports.
///
/// Lock order: code that holds the lock takes no other lock. The handlers are called after the lock is released.
/// Handlers of guest accesses run on the vCPU's thread. `raise` runs on the thread that changed the registers: that of
/// the caller of `inserted`, `requestRemoval` or `emptied`, or the vCPU's. The registers then already show the reason
/// for the event.
public final class ACPIHotplug: BusDevice {
  public static let regionSize = ACPIHotplugRegisters.size
  /// The number of the event that the DSDT's `_E01` handles.
  public static let generalPurposeEvent = 1

  public let slotCount: Int
  private let registers: Mutex<ACPIHotplugRegisters>
  private let raise: @Sendable () -> Void
  private let onEject: @Sendable (Int) -> Void
  private let onRelease: @Sendable (Int) -> Void
  private let onStatus: @Sendable (_ slot: Int, _ source: UInt32, _ status: UInt32) -> Void
  private let onAnnouncementRead: (@Sendable (Announcement) -> Void)?

  /// The value that the guest has read from a slot's `up` or `down` register.
  public enum Announcement: Hashable, Sendable {
    /// Whether a device has appeared.
    case up(slot: Int, Bool)
    /// Whether the guest shall eject the device.
    case down(slot: Int, Bool)
  }

  /// - Parameters:
  ///   - raise: raises `generalPurposeEvent`.
  ///   - onEject: called when the guest ejects the device of an occupied slot, even without a request. The slot already
  ///     counts as empty.
  ///   - onRelease: called when the guest has released a device after its surprise removal (it has written `eject`).
  ///   - onStatus: called with the guest's report on an event (_OST; ACPI 6.5, section 6.3.5). The guest can report
  ///     any source and status, so do not trust them.
  ///   - onAnnouncementRead: called when the guest has read `up` or `down`. Must not block.
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

  /// Announces a device in a slot. Call this after all its functions were added; function 0 comes last.
  /// - Parameter announcing: false at the start of the machine, when the guest finds the device itself.
  public func inserted(_ slot: Int, announcing: Bool = true) {
    announce { $0.insert(slot, announced: announcing) }
  }

  /// Asks the guest to eject the device. Does nothing if the slot is empty. A repeated call repeats the announcement.
  public func requestRemoval(_ slot: Int) { announce { $0.requestRemoval(slot) } }

  /// Marks the slot as empty.
  /// - Parameter announcing: true after a surprise removal: the guest does not know of it yet, so the registers ask it
  ///   to eject the device.
  public func emptied(_ slot: Int, announcing: Bool = false) {
    announce { $0.empty(slot, announced: announcing) }
  }

  /// Returns whether the guest may still use a device after its surprise removal. Until the guest has released it
  /// (`onRelease`), do not add the next device to the slot: the driver of the old device would access the new one. A
  /// guest without hotplug support never releases it, so limit the wait.
  public func awaitsRelease(_ slot: Int) -> Bool { registers.withLock { $0.awaitsRelease(slot) } }

  /// Drops all announcements. Devices stay in their slots.
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
