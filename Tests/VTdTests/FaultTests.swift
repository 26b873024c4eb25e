import Hardware
import Testing
import VTdOracle

@testable import VTd

@Suite("fault recording")
struct FaultTests {
  let first = RequesterID(bus: 0, device: 1, function: 0)
  let second = RequesterID(bus: 0, device: 2, function: 0)

  /// Enables translation with an empty root table.
  func start() throws -> Guest {
    let guest = try Guest()
    guest.setRootTable(guest.page(), scalable: false)
    guest.enableTranslation()
    guest.write32(0x3c, 0x4041)
    guest.write32(0x40, 0xfee0_2000)
    return guest
  }

  let message = InterruptMessage(address: 0xfee0_2000, data: 0x4041)

  @Test("a fault record has the layout that drivers read")
  func record() throws {
    let guest = try start()
    #expect(guest.port(second).answer(0xabcd_e123, .write) == .refused(.translation))
    #expect(guest.read32(0x34) == 2)  // PPF, index 0
    #expect(guest.read64(0x220) == 0xabcd_e000)
    #expect(guest.read64(0x228) == 0x8000_0001_0000_0010)
    guest.write32(0x22c, 0x8000_0000)
    #expect(guest.read64(0x228) == 0x0000_0001_0000_0010)
    #expect(guest.read32(0x34) == 0)
    #expect(guest.port(second).answer(0xabcd_e123, .read) == .refused(.translation))
    #expect(guest.read64(0x228) == 0xc000_0001_0000_0010)
  }

  @Test("a fault of another source sets PFO, one of the same source is merged, and PFO stops recording until cleared")
  func overflow() throws {
    let guest = try start()
    let (one, two) = (guest.port(first), guest.port(second))
    #expect(one.answer(0x1000) == .refused(.translation))
    #expect(one.answer(0x2000) == .refused(.translation))
    #expect(guest.read32(0x34) == 2)
    #expect(guest.read64(0x220) == 0x1000)
    #expect(two.answer(0x3000) == .refused(.translation))
    #expect(guest.read32(0x34) == 3)
    guest.write32(0x22c, 0x8000_0000)
    #expect(guest.read32(0x34) == 1)
    #expect(two.answer(0x3000) == .refused(.translation))
    #expect(guest.takeFault() == nil, "nothing is recorded while PFO is set")
    guest.write32(0x34, 1)
    #expect(guest.read32(0x34) == 0)
    #expect(two.answer(0x3000) == .refused(.translation))
    #expect(guest.takeFault()?.source == second.rawValue)
    #expect(guest.unit.counters[.faults] == 5)
  }

  @Test("the fault event is sent once, stays pending while masked, and is dropped if software clears the record")
  func event() throws {
    let guest = try start()
    let (one, two) = (guest.port(first), guest.port(second))
    _ = one.answer(0x1000)
    #expect(guest.read32(0x38) == 0xc000_0000)
    #expect(guest.events.messages.isEmpty)
    guest.write32(0x38, 0)
    #expect(guest.events.messages == [message])
    #expect(guest.read32(0x38) == 0)
    _ = two.answer(0x1000)  // overflow: a condition is already pending
    #expect(guest.events.messages.count == 1)
    guest.write32(0x22c, 0x8000_0000)
    guest.write32(0x34, 1)
    _ = two.answer(0x1000)
    #expect(guest.events.messages == [message, message])
    // Masked, then served by clearing the record: nothing is left to send.
    guest.write32(0x22c, 0x8000_0000)
    guest.write32(0x38, 0x8000_0000)
    _ = two.answer(0x1000)
    #expect(guest.read32(0x38) == 0xc000_0000)
    guest.write32(0x22c, 0x8000_0000)
    #expect(guest.read32(0x38) == 0x8000_0000)
    guest.write32(0x38, 0)
    #expect(guest.events.messages.count == 2)
    #expect(guest.events.deliveries.allSatisfy { $0.requester == Guest.faultSource })
  }

  @Test("the fault event message has the register values of the moment it is sent")
  func messageChange() throws {
    let guest = try start()
    guest.write32(0x38, 0)
    _ = guest.port(first).answer(0x1000)
    guest.write32(0x22c, 0x8000_0000)
    guest.write32(0x3c, 0x4042)
    guest.write32(0x44, 0x300)
    _ = guest.port(first).answer(0x1000)
    #expect(
      guest.events.messages == [message, InterruptMessage(address: 0x300_fee0_2000, data: 0x4042)])
  }

  @Test("PPF cannot be cleared by writing it")
  func pendingBit() throws {
    let guest = try start()
    _ = guest.port(first).answer(0x1000)
    guest.write32(0x34, 0xffff_ffff)
    #expect(guest.read32(0x34) == 2)
    guest.write64(0x220, 0)
    guest.write32(0x228, 0)
    #expect(guest.read64(0x220) == 0x1000)
  }

  @Test("fault codes are the specification's numbers")
  func codes() {
    #expect(FaultReason.allCases.count == Set(FaultReason.allCases.map(\.rawValue)).count)
    #expect(FaultReason(rawValue: 0x71) == .firstStageEntryNotPresent)
    #expect(FaultReason(rawValue: 0x26) == .interruptSourceValidation)
    let unqualified = FaultReason.allCases.filter { !$0.isQualified }.map(\.rawValue)
    #expect(
      unqualified == [1, 8, 9, 0xa, 0x20, 0x21, 0x23, 0x25, 0x30, 0x31, 0x32, 0x38, 0x39, 0x3a, 0x40])
  }
}
