import Hardware

/// The registers by which the DSDT's methods plug and unplug devices, as a value. Its wiring is `ACPIHotplug`.
///
/// QEMU's layout (docs/specs/acpi_pci_hotplug.rst, hw/acpi/pcihp.c), in which `select` chooses a bus and each other
/// register has a bit for each device on it. Here the bus is the link below a hot-pluggable root port, so bit 0 is its
/// only device, and `select` is the slot's number. From 0x18 on the registers are ours.
///
///     0x00 up         bit 0: a device has appeared. Reading clears it.
///     0x04 down       bit 0: the device is to be ejected. Reading clears it, so a request is announced once.
///     0x08 eject      write bit 0: the guest gives the device back. Reads zero: there are no further features.
///     0x0c removable  bit 0: the slot exists.
///     0x10 select     the slot that the other registers are about
///     0x14            zero (QEMU's acpi-index)
///     0x18 source     _OST's first argument: what the guest reports on
///     0x1c status     _OST's second argument. Writing its last byte reports both.
///     0x20 next       the lowest slot whose up or down is set; all ones for none. Writing its first byte raises the event
///                     again where there is one: an operating system clears events that came before it.
///
/// The registers are bytes within, so any width may cross them; a bit is cleared by a read of its own byte. Where
/// `select` is no slot, reads give zero and writes do nothing.
///
/// A device that was pulled out (surprise removal) is announced as one to be ejected, too. A device check of the slot
/// would not do: Linux then looks for new functions only (drivers/pci/hotplug/acpiphp_glue.c, `hotplug_event`), and a
/// check of the port goes by what answers at that moment, which may be the next device. The slot waits for the eject that
/// follows: until then nothing of a next device is announced.
///
/// A guest ejects once for each request that it has read, and reports each (_OST). What was asked for twice it ejects
/// twice, and the second must not hit the next device: as many ejects are ignored as requests were open, until the guest
/// reports on the next device.
public struct ACPIHotplugRegisters: Sendable {
  /// Size in bytes.
  static let size: UInt64 = 0x24

  /// What the guest has done, for others to act on.
  struct Effects: Hashable, Sendable {
    /// The slot whose device the guest gives back.
    var ejected: Int?
    /// The slot of which the guest has dropped a device that was pulled out.
    var released: Int?
    var report: Report?
    /// The general-purpose event is to be raised.
    var raisesEvent = false
  }

  /// What the guest says of an event (_OST; ACPI 6.5, 6.3.5).
  struct Report: Hashable, Sendable {
    var slot: Int
    /// The notification's value (1 device check, 3 eject request), or from 0x100 on what the guest began itself.
    var source: UInt32
    /// 0 for success.
    var status: UInt32
  }

  /// What is known of a device that was pulled out, until the guest has dropped it.
  private enum Loss {
    case unread, announced
  }

  private struct Slot {
    var isOccupied = false
    var hasAppeared = false
    var isToBeEjected = false
    var loss: Loss?
    /// How many requests the guest has read and not yet answered.
    var openRequests = 0
    /// How many ejects are still to come that answer requests about an earlier device.
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

  // MARK: The board's side

  /// - Parameter announced: the guest is to look for it; otherwise it was there before the guest was.
  /// - Returns: whether there is something new to announce.
  mutating func insert(_ slot: Int, announced: Bool) -> Bool {
    slots[slot].isOccupied = true
    slots[slot].hasAppeared = announced
    slots[slot].isToBeEjected = false
    return slots[slot].up
  }

  /// Asks the guest for the device, after it has been told that there is one.
  /// - Returns: whether there is something new to announce. There is not where the slot is empty.
  mutating func requestRemoval(_ slot: Int) -> Bool {
    guard slots[slot].isOccupied else { return false }
    slots[slot].isToBeEjected = true
    return slots[slot].loss == nil
  }

  /// - Parameter announced: the guest did not give the device back, and is to drop it.
  /// - Returns: whether there is something new to announce.
  mutating func empty(_ slot: Int, announced: Bool) -> Bool {
    slots[slot].isOccupied = false
    slots[slot].hasAppeared = false
    slots[slot].isToBeEjected = false
    // Also where the guest has not heard of the device: it may have looked by itself.
    guard announced, slots[slot].loss == nil else { return false }
    slots[slot].loss = .unread
    return true
  }

  /// Whether the guest may still have a device that was pulled out.
  func awaitsRelease(_ slot: Int) -> Bool { slots[slot].loss != nil }

  /// Forgets what was to be announced: the guest that starts finds what is there. Devices stay.
  mutating func reset() {
    for slot in slots.indices {
      let isOccupied = slots[slot].isOccupied
      slots[slot] = Slot()
      slots[slot].isOccupied = isOccupied
    }
    (select, source, status) = (0, 0, 0)
  }

  // MARK: The guest's side

  /// nil where `select` is no slot.
  var selected: Int? { Int(exactly: select).flatMap { slots.indices.contains($0) ? $0 : nil } }

  private var next: UInt32 { slots.firstIndex(where: \.isPending).map { UInt32(truncatingIfNeeded: $0) } ?? .max }

  mutating func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<width.rawValue {
      value |= UInt64(readByte(at: offset &+ UInt64(index))) << (8 * index)
    }
    return value
  }

  mutating func write(offset: UInt64, width: AccessWidth, value: UInt64) -> Effects {
    var effects = Effects()
    for index in 0..<width.rawValue {
      let byte = UInt8(truncatingIfNeeded: value >> (8 * index))
      writeByte(byte, at: offset &+ UInt64(index), &effects)
    }
    return effects
  }

  private mutating func readByte(at offset: UInt64) -> UInt8 {
    func part(_ value: UInt32, from base: UInt64) -> UInt8 {
      UInt8(truncatingIfNeeded: value >> (8 * (offset - base)))
    }
    switch offset {
    case Offset.select..<Offset.select + 4: return part(select, from: Offset.select)
    case Offset.next..<Offset.next + 4: return part(next, from: Offset.next)
    case Offset.source..<Offset.source + 4: return part(source, from: Offset.source)
    case Offset.status..<Offset.status + 4: return part(status, from: Offset.status)
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
    func replaced(_ value: UInt32, from base: UInt64) -> UInt32 {
      let shift = 8 * (offset - base)
      return value & ~(0xff << shift) | UInt32(byte) << shift
    }
    switch offset {
    case Offset.eject where byte & 1 != 0: eject(&effects)
    case Offset.select..<Offset.select + 4: select = replaced(select, from: Offset.select)
    case Offset.source..<Offset.source + 4: source = replaced(source, from: Offset.source)
    case Offset.status..<Offset.status + 4:
      status = replaced(status, from: Offset.status)
      if offset == Offset.status + 3 { report(&effects) }
    case Offset.next: if slots.contains(where: \.isPending) { effects.raisesEvent = true }
    default: break
    }
  }

  /// Asked to or not: a person may have switched the slot off in the guest.
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
