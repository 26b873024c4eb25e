import Hardware
import Testing
import VTdOracle

@testable import VTd

@Suite("invalidation queue")
struct QueueTests {
  /// Returns the reason of the queue error; nil if IQE is clear.
  func error(_ guest: Guest) -> UInt64? {
    guard guest.read32(0x34) & 0x10 != 0 else { return nil }
    return guest.read64(0xb0) & 0xf
  }
  func clearError(_ guest: Guest) { guest.write32(0x34, 0x10) }

  @Test(
    "each wait writes its status when the queue wraps many times, with both descriptor widths",
    arguments: [false, true])
  func laps(wide: Bool) throws {
    let guest = try Guest { $0.scalableMode = wide }
    guest.enableQueue(wide: wide)
    for _ in 0..<1000 { #expect(guest.submitAndWait([2 | 1 << 4, 0])) }
    #expect(error(guest) == nil)
    #expect(guest.read64(0x80) == guest.read64(0x88))
    #expect(guest.unit.counters[.waits] == 1000)
  }

  @Test("a disabled queue fetches nothing, and enabling it fetches the waiting descriptors")
  func enable() throws {
    let guest = try Guest()
    let queue = guest.page()
    let status = guest.page()
    guest.store(0x77 << 32 | 0x25, at: queue)
    guest.store(status, at: queue + 8)
    guest.write64(0x90, queue)
    guest.write64(0x88, 16)
    #expect(guest.load(status) == 0)
    guest.command(set: 26)
    #expect(guest.load(status) == 0x77)
    #expect(guest.read64(0x80) == 16)
    guest.command(clear: 26)
    #expect(guest.read64(0x80) == 0)
    #expect(guest.status & 1 << 26 == 0)
  }

  @Test("the queue stops at each malformed descriptor with the descriptor's error reason")
  func errors() throws {
    let guest = try Guest.scalable {
      $0.deviceIOTLB = true
      $0.pasidBits = 8
    }
    let tables = guest.scalableTables(source: RequesterID(rawValue: 0), words: (0, 0, 0))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableQueue(wide: true)
    let cases: [(reason: UInt64, descriptor: [UInt64])] = [
      (3, [0, 0]), (3, [9, 0]), (3, [0xa, 0]), (3, [0xf, 0]), (3, [1 | 1 << 9, 0]),
      (4, [1, 0]), (4, [1 | 1 << 4 | 1 << 6, 0]), (4, [1 | 1 << 4, 1]), (4, [1 | 1 << 4, 0, 1]),
      (4, [1 | 1 << 4, 0, 0, 1 << 63]),
      (4, [2, 0]), (4, [2 | 1 << 4 | 1 << 32, 0]), (4, [2 | 3 << 4, 0x80]), (4, [2 | 3 << 4, 19]),
      (4, [3 | 1 << 4, 0]), (4, [3 | 1 << 12, 0]), (4, [3, 2]),
      (4, [4 | 1 << 5, 0]), (4, [4, 1]),
      (4, [5 | 1 << 7, 0]), (4, [5, 1]),
      (4, [6, 0]), (4, [6 | 1 << 4, 0]), (4, [6 | 2 << 4 | 1 << 52, 0]),
      (4, [7 | 2 << 4, 0]), (4, [7 | 3 << 4, 1]),
      (4, [8 | 1 << 12, 0]), (4, [8, 2]),
    ]
    var head = guest.read64(0x80)
    for (reason, descriptor) in cases {
      let what = descriptor.map { String($0, radix: 16) }
      #expect(!guest.submitAndWait(descriptor), "\(what)")
      #expect(error(guest) == reason, "\(what)")
      #expect(guest.read64(0x80) == head, "\(what)")
      // Nothing is fetched while IQE is set. Then software replaces the descriptor with a valid one.
      #expect(!guest.submitAndWait([2 | 1 << 4, 0]))
      guest.store(2 | 1 << 4, at: guest.queueBase + head)
      for word: UInt64 in 1...3 { guest.store(0, at: guest.queueBase + head + word * 8) }
      clearError(guest)
      #expect(guest.read64(0x80) == guest.read64(0x88), "the queue continues when IQE is cleared")
      head = guest.read64(0x80)
    }
    #expect(guest.submitAndWait([2 | 1 << 4, 0]))
  }

  @Test("descriptors of features that the unit lacks are invalid types")
  func notOffered() throws {
    for (type, change) in [
      (3, { _ in }), (4, { $0.interruptRemapping = false }), (6, { _ in }), (7, { _ in }), (8, { _ in }),
    ] as [(UInt64, (inout UnitOptions) -> Void)] {
      let guest = try Guest(change)
      guest.enableQueue(wide: false)
      #expect(!guest.submitAndWait([type, 0]))
      #expect(error(guest) == 3, "type \(type)")
    }
  }

  @Test("in legacy mode, descriptor types of scalable mode are invalid (Table 23)")
  func typesOfScalableMode() throws {
    let guest = try Guest.firstStage { TranslationRequestTests.all(&$0) }
    guest.enableQueue(wide: true)
    for descriptor: [UInt64] in [[6 | 2 << 4, 0], [7 | 3 << 4, 0], [8, 0], [9, 0]] {
      #expect(!guest.submitAndWait(descriptor))
      #expect(error(guest) == 3)
      guest.store(2 | 1 << 4, at: guest.queueBase + guest.read64(0x80))
      clearError(guest)
    }
  }

  @Test("a reserved table mode stops the queue at any descriptor", arguments: [2, 3] as [UInt64])
  func reservedTableMode(mode: UInt64) throws {
    let guest = try Guest.scalable()
    guest.write64(0x20, guest.page() | mode << 10)
    guest.command(set: 30)
    guest.enableQueue(wide: true)
    #expect(!guest.submitAndWait([2 | 1 << 4, 0]))
    #expect(error(guest) == 7)
  }

  @Test("scalable mode needs wide descriptors, which need a unit with scalable mode")
  func widths() throws {
    let scalable = try Guest.scalable()
    scalable.setRootTable(scalable.page(), scalable: true)
    scalable.enableQueue(wide: false)
    #expect(!scalable.submitAndWait([2 | 1 << 4, 0]))
    #expect(error(scalable) == 5)
    let legacy = try Guest()
    legacy.enableQueue(wide: true)
    #expect(!legacy.submitAndWait([2 | 1 << 4, 0]))
    #expect(error(legacy) == 5)
  }

  @Test("a bad tail and a queue outside RAM are queue errors")
  func tails() throws {
    var guest = try Guest.scalable()
    guest.enableQueue(wide: true)
    guest.write64(0x88, 0x1000)
    #expect(error(guest) == 1)
    guest.write64(0x88, 0)
    clearError(guest)
    guest.write64(0x88, 0x10)
    #expect(error(guest) == 6)
    guest = try Guest()
    guest.write64(0x90, 0x70_0000_0000)
    guest.command(set: 26)
    guest.write64(0x88, 0x10)
    #expect(error(guest) == 2)
    #expect(guest.read64(0x80) == 0)
  }

  @Test("the largest queue works when it is full")
  func bigQueue() throws {
    let guest = try Guest()
    let queue: UInt64 = 0x40_0000
    for offset in stride(from: UInt64(0), to: 0x8_0000, by: 16) { guest.store(0x12, at: queue + offset) }
    guest.write64(0x90, queue | 7)
    guest.command(set: 26)
    guest.write64(0x88, 0x7_fff0)
    #expect(guest.read64(0x80) == 0x7_fff0)
    #expect(guest.unit.counters[.iotlbInvalidations] == 32767)
  }

  @Test("a status address outside RAM is ignored")
  func statusAddress() throws {
    let guest = try Guest()
    guest.enableQueue(wide: false)
    guest.submit([0x25, 0x70_0000_0000], [0x25, .max - 3])
    #expect(error(guest) == nil)
    #expect(guest.read64(0x80) == 32)
  }

  @Test("the invalidation event obeys its mask, and is sent once until served")
  func completionEvent() throws {
    let guest = try Guest()
    guest.enableQueue(wide: false)
    guest.write32(0xa4, 0x4033)
    guest.write32(0xa8, 0xfee0_1000)
    guest.write32(0xac, 0x200)
    let message = InterruptMessage(address: 0x200_fee0_1000, data: 0x4033)
    // Masked: pending.
    guest.submit([0x15, 0])
    #expect(guest.read32(0x9c) == 1)
    #expect(guest.read32(0xa0) == 0xc000_0000)
    #expect(guest.events.deliveries.isEmpty)
    // Served while masked: no longer pending.
    guest.write32(0x9c, 1)
    #expect(guest.read32(0x9c) == 0)
    #expect(guest.read32(0xa0) == 0x8000_0000)
    guest.submit([0x15, 0])
    guest.write32(0xa0, 0)
    #expect(guest.events.messages == [message])
    #expect(guest.read32(0xa0) == 0)
    // A second completion before IWC is cleared does not interrupt.
    guest.submit([0x15, 0])
    #expect(guest.events.messages.count == 1)
    guest.write32(0x9c, 1)
    guest.submit([0x15, 0])
    #expect(guest.events.messages == [message, message])
    #expect(guest.events.deliveries.allSatisfy { $0.requester == Guest.completionSource })
  }

  @Test("queue errors raise the fault event")
  func errorEvent() throws {
    let guest = try Guest()
    guest.enableQueue(wide: false)
    guest.write32(0x38, 0)
    guest.submit([0, 0])
    #expect(guest.events.deliveries.map(\.requester) == [Guest.faultSource])
  }

  @Test("device-TLB ranges are decoded as ATS encodes them")
  func deviceTLB() throws {
    let guest = try Guest.scalable {
      $0.deviceIOTLB = true
      $0.pasidBits = 8
    }
    let tables = guest.scalableTables(source: RequesterID(rawValue: 0), words: (0, 0, 0))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableQueue(wide: true)
    _ = guest.observer.take()
    let source = RequesterID(rawValue: 0x18)
    let whole: UInt64 = 3 | 0x18 << 32
    let ofPASID: UInt64 = 8 | 0x18 << 16
    let cases: [(descriptor: [UInt64], expected: Invalidation)] = [
      ([whole | 0x1f << 16, 0x1234_5000], .deviceTLB(source, PageRange(address: 0x1234_5000, addressMask: 0))),
      ([whole, 0x1234_0001], .deviceTLB(source, PageRange(address: 0x1234_0000, addressMask: 1))),
      ([whole, 0x1234_3001], .deviceTLB(source, PageRange(address: 0x1234_0000, addressMask: 3))),
      ([whole, 0x7fff_ffff_ffff_f001], .deviceTLB(source, PageRange(address: 0, addressMask: 52))),
      (
        [ofPASID | 4 << 32, 0x7fff_ffff_ffff_f800],
        .deviceTLBOfPASID(source, 4, PageRange(address: 0, addressMask: 52))
      ),
      ([ofPASID, 0x5001], .deviceTLBOfPASID(source, nil, PageRange(address: 0x5000, addressMask: 0))),
    ]
    for (descriptor, expected) in cases {
      #expect(guest.submitAndWait(descriptor))
      #expect(guest.observer.take() == [expected])
    }
    #expect(guest.unit.counters[.deviceTLBInvalidations] == 6)
  }

  @Test(
    "a page range is aligned to its size and may cover the whole space",
    arguments: [
      (0x1234_5678, 0, 0x1234_5000, 0x1234_5fff), (0x1234_5678, 4, 0x1234_0000, 0x1234_ffff), (.max, 51, 1 << 63, .max),
      (.max, 52, 0, .max), (.max, 63, 0, .max), (0, 0, 0, 0xfff),
    ] as [(UInt64, Int, UInt64, UInt64)])
  func pageRange(address: UInt64, mask: Int, first: UInt64, last: UInt64) {
    let range = PageRange(address: address, addressMask: mask)
    #expect(range.first == first)
    #expect(range.last == last)
  }
}
