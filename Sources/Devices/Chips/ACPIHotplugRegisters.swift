import Hardware

/// The registers by which the DSDT's methods plug and unplug devices, as a value. `ACPIHotplug` connects them to the
/// machine.
///
/// The layout is QEMU's (docs/specs/acpi_pci_hotplug.rst, hw/acpi/pcihp.c): `select` chooses a bus, and each other
/// register has a bit per device on that bus. In Nestling the bus is the link below a hot-pluggable root port. It has
/// one device, bit 0, and `select` is the slot's number. QEMU does not have the registers from 0x18 on.
///     0x00 up         bit 0: a device has appeared. A read clears it.
///     0x04 down       bit 0: the guest shall eject the device. A read clears it, so a request is announced once.
///     0x08 eject      write bit 0: the guest ejects the device. Reads zero: there are no further features.
///     0x0c removable  bit 0: the slot exists.
///     0x10 select     the slot that the other registers refer to
///     0x14            zero (QEMU's acpi-index)
///     0x18 source     _OST's first argument: the event that the guest reports on
///     0x1c status     _OST's second argument. A write to its last byte reports both.
///     0x20 next       the lowest slot whose up or down is set; all ones for none. A write to its first byte raises the
///                     event again if there is such a slot: an operating system clears events from before its start.
///
/// The registers are accessed by bytes, so an access of any width may span several; a read clears only the bits of the
/// bytes that it reads. While `select` is not a slot, reads return zero and writes have no effect.
///
/// A surprise removal is announced in `down`, too. A device check of the slot would not work: Linux then only looks for
/// new functions (drivers/pci/hotplug/acpiphp_glue.c, `hotplug_event`). A check of the port would find the functions
/// that answer at that moment, which may be the next device's. Until the guest has ejected the old device, the
/// registers announce nothing about the next one.
///
/// A guest ejects once per request that it has read, and reports each one (_OST). After two requests it ejects twice,
/// and the second eject must not remove the next device. The registers therefore ignore one eject for each further open
/// request, until the guest reports on the next device.
public struct ACPIHotplugRegisters: Sendable {
  /// The size of the registers in bytes.
  static let size: UInt64 = 0x24

  /// The effects of a write, which `ACPIHotplug` carries out.
  struct Effects: Hashable, Sendable {
    /// The slot whose device the guest ejects.
    var ejected: Int?
    /// The slot whose device the guest has released after a surprise removal.
    var released: Int?
    var report: Report?
    /// Whether to raise the general-purpose event.
    var raisesEvent = false
  }

  /// The guest's report on an event (_OST; ACPI 6.5, section 6.3.5).
  struct Report: Hashable, Sendable {
    var slot: Int
    /// The notification's value (1 device check, 3 eject request); from 0x100 on, an event that the guest itself
    /// started.
    var source: UInt32
    /// 0 for success.
    var status: UInt32
  }

  /// Whether the guest has read the announcement of a surprise removal. Exists until the guest has released the device.
  private enum Loss {
    case unread, announced
  }

  private struct Slot {
    var isOccupied = false
    var hasAppeared = false
    var isToBeEjected = false
    var loss: Loss?
    /// The number of requests that the guest has read but not answered.
    var openRequests = 0
    /// The number of expected ejects that answer requests about an earlier device.
    var lateEjects = 0

    var up: Bool { hasAppeared && loss == nil }
    var down: Bool { loss == .unread || isToBeEjected && loss == nil }
    var isPending: Bool { up || down }

    mutating func answer() {
      lateEjects = max(openRequests - 1, 0)
      openRequests = 0
    }
  }

  enum Offset {
    static let up: UInt64 = 0x00
    static let down: UInt64 = 0x04
    static let eject: UInt64 = 0x08
    static let removable: UInt64 = 0x0c
    static let select: UInt64 = 0x10
    static let source: UInt64 = 0x18
    static let status: UInt64 = 0x1c
    static let next: UInt64 = 0x20
  }

  private var slots: [Slot]
  private var select: UInt32 = 0
  private var source: UInt32 = 0
  private var status: UInt32 = 0

  init(slotCount: Int) { slots = Array(repeating: Slot(), count: slotCount) }

  // MARK: Actions of the board

  /// - Parameter announced: false if the device was present before the guest started.
  /// - Returns: whether to raise the event.
  mutating func insert(_ slot: Int, announced: Bool) -> Bool {
    slots[slot].isOccupied = true
    slots[slot].hasAppeared = announced
    slots[slot].isToBeEjected = false
    return slots[slot].up
  }

  /// Requests the removal of the device. An unread announcement of its insertion stays.
  /// - Returns: whether to raise the event; false if the slot is empty.
  mutating func requestRemoval(_ slot: Int) -> Bool {
    guard slots[slot].isOccupied else { return false }
    slots[slot].isToBeEjected = true
    return slots[slot].loss == nil
  }

  /// - Parameter announced: true after a surprise removal: the guest must release the device.
  /// - Returns: whether to raise the event.
  mutating func empty(_ slot: Int, announced: Bool) -> Bool {
    slots[slot].isOccupied = false
    slots[slot].hasAppeared = false
    slots[slot].isToBeEjected = false
    // Announce the removal even if the guest has not read the insertion: the guest may have found the device itself.
    guard announced, slots[slot].loss == nil else { return false }
    slots[slot].loss = .unread
    return true
  }

  /// Returns whether the guest may still use a device after its surprise removal.
  func awaitsRelease(_ slot: Int) -> Bool { slots[slot].loss != nil }

  /// Drops all announcements: a guest that starts finds the present devices itself. Devices stay.
  mutating func reset() {
    for slot in slots.indices {
      let isOccupied = slots[slot].isOccupied
      slots[slot] = Slot()
      slots[slot].isOccupied = isOccupied
    }
    (select, source, status) = (0, 0, 0)
  }

  // MARK: Accesses by the guest

  /// The selected slot; nil if `select` is not a slot.
  var selected: Int? { Int(exactly: select).flatMap { slots.indices.contains($0) ? $0 : nil } }

  private var next: UInt32 { slots.firstIndex(where: \.isPending).map { UInt32(truncatingIfNeeded: $0) } ?? .max }

  mutating func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    width.assemble(from: offset) { readByte(at: $0) }
  }

  mutating func write(offset: UInt64, width: AccessWidth, value: UInt64) -> Effects {
    var effects = Effects()
    width.split(value, from: offset) { writeByte($1, at: $0, &effects) }
    return effects
  }

  private mutating func readByte(at offset: UInt64) -> UInt8 {
    switch offset {
    case Offset.select..<Offset.select + 4: return select[byte: offset - Offset.select]
    case Offset.next..<Offset.next + 4: return next[byte: offset - Offset.next]
    case Offset.source..<Offset.source + 4: return source[byte: offset - Offset.source]
    case Offset.status..<Offset.status + 4: return status[byte: offset - Offset.status]
    default: break
    }
    guard let slot = selected else { return 0 }
    switch offset {
    case Offset.up:
      guard slots[slot].up else { return 0 }
      slots[slot].hasAppeared = false
      return 1
    case Offset.down:
      guard slots[slot].down else { return 0 }
      slots[slot].openRequests += 1
      if slots[slot].loss == nil { slots[slot].isToBeEjected = false } else { slots[slot].loss = .announced }
      return 1
    case Offset.removable: return 1
    default: return 0
    }
  }

  private mutating func writeByte(_ byte: UInt8, at offset: UInt64, _ effects: inout Effects) {
    switch offset {
    case Offset.eject where byte & 1 != 0: eject(&effects)
    case Offset.select..<Offset.select + 4: select[byte: offset - Offset.select] = byte
    case Offset.source..<Offset.source + 4: source[byte: offset - Offset.source] = byte
    case Offset.status..<Offset.status + 4:
      status[byte: offset - Offset.status] = byte
      if offset == Offset.status + 3 { report(&effects) }
    case Offset.next: if slots.contains(where: \.isPending) { effects.raisesEvent = true }
    default: break
    }
  }

  /// Handles an eject, which may come without a request: a user may have switched the slot off in the guest.
  private mutating func eject(_ effects: inout Effects) {
    guard let slot = selected else { return }
    if slots[slot].lateEjects > 0 {
      slots[slot].lateEjects -= 1
    } else if slots[slot].loss != nil {
      slots[slot].loss = nil
      slots[slot].answer()
      effects.released = slot
      if slots[slot].isPending { effects.raisesEvent = true }
    } else if slots[slot].isOccupied {
      _ = empty(slot, announced: false)
      slots[slot].answer()
      effects.ejected = slot
    }
  }

  private mutating func report(_ effects: inout Effects) {
    guard let slot = selected else { return }
    effects.report = Report(slot: slot, source: source, status: status)
    switch source {
    case Self.deviceCheck: slots[slot].lateEjects = 0
    case Self.ejectRequest: slots[slot].openRequests = max(slots[slot].openRequests - 1, 0)
    default: break
    }
  }

  // Values of notifications (ACPI 6.5, table 5.188).
  private static let deviceCheck: UInt32 = 1
  private static let ejectRequest: UInt32 = 3
}
