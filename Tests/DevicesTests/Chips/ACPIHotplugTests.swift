import Devices
import Hardware
import Testing

/// Accesses the controller as the DSDT's methods do.
@Suite struct ACPIHotplugTests {
  private struct Report: Hashable, Sendable {
    var slot: Int
    var source: UInt32
    var status: UInt32
  }

  private static let none: UInt64 = 0xffff_ffff

  private let events = Calls<Bool>()
  private let ejects = Calls<Int>()
  private let releases = Calls<Int>()
  private let reports = Calls<Report>()
  private let device: ACPIHotplug

  init() {
    device = ACPIHotplug(
      slotCount: 4, raise: { [events] in events.append(true) }, onEject: { [ejects] in ejects.append($0) },
      onRelease: { [releases] in releases.append($0) },
      onStatus: { [reports] in reports.append(Report(slot: $0, source: $1, status: $2)) })
  }

  private func read(_ offset: UInt64) -> UInt64 { device.read(offset: offset, width: .doubleword) }
  private func write(_ offset: UInt64, _ value: UInt64) {
    device.write(offset: offset, width: .doubleword, value: value)
  }

  private var next: UInt64 { read(0x20) }

  /// Returns slot and value of each `Notify` that the event's method would execute.
  private func notifications() -> [[UInt64]] {
    var found: [[UInt64]] = []
    while next != Self.none, found.count < 100 {
      let slot = next
      write(0x10, slot)
      if read(0x00) & 1 != 0 { found.append([slot, 1]) }
      if read(0x04) & 1 != 0 { found.append([slot, 3]) }
    }
    return found
  }

  private func eject(_ slot: UInt64) {
    write(0x10, slot)
    write(0x08, 1)
  }

  private func report(_ slot: UInt64, _ source: UInt64, _ status: UInt64 = 0) {
    write(0x10, slot)
    write(0x18, source)
    write(0x1c, status)
  }

  @Test func `a new device raises the event and is announced once`() {
    #expect(next == Self.none)
    device.inserted(2)
    #expect(events.values.count == 1)
    #expect(next == 2)
    #expect(notifications() == [[2, 1]])
    #expect(notifications() == [])
  }

  @Test func `a device that is present at the start is not announced`() {
    device.inserted(1, announcing: false)
    #expect(events.values.isEmpty)
    #expect(next == Self.none)
    device.requestRemoval(1)
    #expect(notifications() == [[1, 3]])
  }

  @Test func `a removal request is announced once, and the eject answers it`() {
    device.inserted(0, announcing: false)
    device.requestRemoval(0)
    #expect(events.values.count == 1)
    #expect(notifications() == [[0, 3]])
    #expect(notifications() == [])
    eject(0)
    #expect(ejects.values == [0])
    device.emptied(0)
    eject(0)
    #expect(ejects.values == [0])
    #expect(events.values.count == 1)
  }

  @Test func `the lower slot comes first, and each slot has its own bits`() {
    for slot in [3, 1] { device.inserted(slot) }
    device.inserted(2, announcing: false)
    device.requestRemoval(2)
    #expect(notifications() == [[1, 1], [2, 3], [3, 1]])
  }

  @Test func `a device that is plugged and requested back before the guest looks is announced before the request`() {
    device.inserted(0)
    device.requestRemoval(0)
    #expect(notifications() == [[0, 1], [0, 3]])
  }

  @Test func `a removal request does not apply to the slot's next device`() {
    device.inserted(0, announcing: false)
    device.requestRemoval(0)
    eject(0)
    device.emptied(0)
    device.inserted(0)
    #expect(notifications() == [[0, 1]])
    #expect(ejects.values == [0])
  }

  @Test func `a guest may eject a device without a request`() {
    device.inserted(3, announcing: false)
    eject(3)
    #expect(ejects.values == [3])
  }

  @Test func `an empty slot ejects nothing and takes no removal request`() {
    eject(1)
    device.requestRemoval(1)
    #expect(ejects.values.isEmpty)
    #expect(events.values.isEmpty)
    #expect(next == Self.none)
  }

  @Test func `when two removal requests end in two ejects, the second eject leaves the next device in the slot`() {
    device.inserted(0, announcing: false)
    for _ in 0..<2 {
      device.requestRemoval(0)
      #expect(notifications() == [[0, 3]])
    }
    eject(0)
    device.emptied(0)
    device.inserted(0)
    report(0, 3)
    eject(0)
    report(0, 3)
    #expect(ejects.values == [0])
    // The next device can be ejected like any other.
    #expect(notifications() == [[0, 1]])
    report(0, 1)
    eject(0)
    #expect(ejects.values == [0, 0])
  }

  @Test func `a removal request that the guest never reports on does not prevent the next device's eject`() {
    device.inserted(0, announcing: false)
    for _ in 0..<2 {
      device.requestRemoval(0)
      #expect(notifications() == [[0, 3]])
    }
    eject(0)
    report(0, 3)
    device.emptied(0)
    device.inserted(0)
    #expect(notifications() == [[0, 1]])
    report(0, 1)
    eject(0)
    #expect(ejects.values == [0, 0])
  }

  @Test func `after the guest reported a request's status, the next device's eject does not count as the answer`() {
    device.inserted(0, announcing: false)
    device.requestRemoval(0)
    #expect(notifications() == [[0, 3]])
    report(0, 3, 1)
    device.requestRemoval(0)
    #expect(notifications() == [[0, 3]])
    eject(0)
    device.inserted(0, announcing: false)
    eject(0)
    #expect(ejects.values == [0, 0])
  }

  @Test func `after a surprise removal the next device is announced once the guest has released the old one`() {
    device.inserted(0, announcing: false)
    device.emptied(0, announcing: true)
    #expect(device.awaitsRelease(0))
    #expect(events.values.count == 1)
    device.inserted(0)
    device.requestRemoval(0)
    #expect(events.values.count == 1)
    #expect(notifications() == [[0, 3]])
    eject(0)
    #expect(ejects.values.isEmpty)
    #expect(releases.values == [0])
    #expect(!device.awaitsRelease(0))
    #expect(events.values.count == 2)
    #expect(notifications() == [[0, 1], [0, 3]])
    eject(0)
    #expect(ejects.values == [0])
  }

  @Test func `an eject that answers a request from before a surprise removal counts as the release`() {
    device.inserted(0, announcing: false)
    device.requestRemoval(0)
    #expect(notifications() == [[0, 3]])
    device.emptied(0, announcing: true)
    #expect(notifications() == [[0, 3]])
    device.inserted(0)
    eject(0)
    eject(0)
    #expect(releases.values == [0])
    #expect(ejects.values.isEmpty)
    #expect(notifications() == [[0, 1]])
  }

  @Test func `two surprise removals before the guest looks are announced and released as one`() {
    device.inserted(0, announcing: false)
    device.emptied(0, announcing: true)
    device.inserted(0)
    device.emptied(0, announcing: true)
    #expect(notifications() == [[0, 3]])
    eject(0)
    #expect(releases.values == [0])
    #expect(notifications() == [])
  }

  @Test func `a reset forgets pending announcements and keeps the devices`() {
    device.inserted(0)
    device.inserted(1, announcing: false)
    device.requestRemoval(1)
    device.inserted(2, announcing: false)
    device.emptied(2, announcing: true)
    write(0x10, 2)
    device.reset()
    #expect(next == Self.none)
    #expect(read(0x10) == 0)
    #expect(!device.awaitsRelease(2))
    for slot in 0..<3 { eject(UInt64(slot)) }
    #expect(ejects.values == [0, 1])
  }

  @Test func `the guest's status reports are passed on, for existing slots only`() {
    report(1, 3, 0)
    report(0, 0x103, 0x81)
    report(4, 3, 0)
    report(Self.none, 3, 0)
    #expect(
      reports.values == [
        Report(slot: 1, source: 3, status: 0), Report(slot: 0, source: 0x103, status: 0x81),
      ])
  }

  @Test func `a slot that does not exist reads as zero and does nothing`() {
    for slot in 0..<4 { device.inserted(slot, announcing: false) }
    for select: UInt64 in [4, 0x8000_0000, 0xffff_ffff] {
      write(0x10, select)
      #expect(read(0x10) == select)
      #expect([0x00, 0x04, 0x08, 0x0c].map(read) == [0, 0, 0, 0])
      write(0x08, 1)
    }
    #expect(ejects.values.isEmpty)
    write(0x10, 3)
    #expect(read(0x0c) == 1)
  }

  @Test func `only bit 0 of the eject register ejects, because a link has one device`() {
    device.inserted(0, announcing: false)
    write(0x08, 0xffff_fffe)
    #expect(ejects.values.isEmpty)
    device.write(offset: 0x08, width: .byte, value: 1)
    #expect(ejects.values == [0])
  }

  @Test func `a read of other bytes of a register clears nothing`() {
    device.inserted(0)
    #expect(device.read(offset: 0x01, width: .byte) == 0)
    #expect(device.read(offset: 0x02, width: .word) == 0)
    #expect(device.read(offset: 0x00, width: .byte) == 1)
  }

  @Test func `an operating system that cleared the event can raise it again`() {
    write(0x20, 0)
    #expect(events.values.isEmpty)
    device.inserted(0)
    write(0x20, 0)
    #expect(events.values.count == 2)
  }

  @Test func `the handlers may call the controller, which holds no lock meanwhile`() {
    // If the controller held its lock, the handlers would hang.
    let slots = Calls<ACPIHotplug>()
    let device = ACPIHotplug(
      slotCount: 1, raise: { for slots in slots.values { _ = slots.awaitsRelease(0) } },
      onEject: { slot in for slots in slots.values { slots.emptied(slot) } },
      onRelease: { slot in for slots in slots.values { slots.inserted(slot) } },
      onStatus: { slot, _, _ in for slots in slots.values { slots.requestRemoval(slot) } })
    slots.append(device)
    device.inserted(0)
    device.write(offset: 0x1c, width: .doubleword, value: 0)
    device.write(offset: 0x08, width: .byte, value: 1)
    device.emptied(0, announcing: true)
    device.write(offset: 0x08, width: .byte, value: 1)
    #expect(device.read(offset: 0x20, width: .doubleword) == 0)
  }
}
