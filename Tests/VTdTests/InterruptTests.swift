import Hardware
import Testing
import VTdOracle

@testable import VTd

@Suite("interrupt remapping")
struct InterruptTests {
  let device = RequesterID(bus: 0, device: 3, function: 0)
  let ioapic = RequesterID(rawValue: 0xff00)

  /// Sets up a table of `2 << size` entries and enables remapping.
  func start(extended: Bool = true, size: UInt64 = 7, options: (inout UnitOptions) -> Void = { _ in }) throws -> (
    guest: Guest, table: UInt64
  ) {
    let guest = try Guest(options)
    let table = guest.page(count: 16)
    guest.write64(0xb8, table | (extended ? 0x800 : 0) | size)
    guest.command(set: 24)
    guest.enableQueue(wide: false)
    guest.command(set: 25)
    return (guest, table)
  }

  /// The low 64 bits of an entry. The default flags are those of Linux (prepare_irte): present, physical destination,
  /// redirection hint, fixed delivery, edge-triggered.
  func entry(vector: UInt64, destination: UInt64, low: UInt64 = 0x9) -> UInt64 {
    destination << 32 | vector << 16 | low
  }
  func verify(_ source: RequesterID, qualifier: UInt64 = 0) -> UInt64 {
    1 << 18 | qualifier << 16 | UInt64(source.rawValue)
  }

  /// Returns a message in remappable format.
  func message(_ handle: UInt64, subhandle: UInt32? = nil) -> InterruptMessage {
    InterruptMessage(
      address: 0xfee0_0010 | (handle & 0x7fff) << 5 | (handle >> 15) << 2 | (subhandle == nil ? 0 : 8),
      data: subhandle ?? 0)
  }

  func remap(_ guest: Guest, _ message: InterruptMessage, from source: RequesterID? = nil) -> RemappedInterrupt {
    guest.unit.remap(message, from: source ?? device, recordFault: true)
  }

  @Test("while remapping is disabled, messages pass unchanged")
  func disabled() throws {
    let guest = try Guest()
    let message = InterruptMessage(address: 0xfee0_1234, data: 0x4567)
    #expect(remap(guest, message) == .deliver(message))
    #expect(guest.unit.counters[.interruptsPassed] == 1)
  }

  @Test("a 32-bit destination is encoded as KVM expects it")
  func extendedMode() throws {
    let (guest, table) = try start()
    guest.store(entry(vector: 0x51, destination: 0x0123_4567), at: table + 5 * 16)
    guest.store(verify(device), at: table + 5 * 16 + 8)
    #expect(
      remap(guest, message(5)) == .deliver(InterruptMessage(address: 0x0123_4500_fee6_7008, data: 0x4051)))
    #expect(guest.unit.counters[.interruptsRemapped] == 1)
  }

  @Test("an entry with an 8-bit logical destination, lowest priority and level trigger gives the right message")
  func compatibleMode() throws {
    let (guest, table) = try start(extended: false)
    guest.store(entry(vector: 0x61, destination: 0x0300, low: 0x1 | 4 | 0x10 | 1 << 5), at: table + 16)
    guest.store(verify(ioapic), at: table + 24)
    #expect(
      remap(guest, message(1), from: ioapic) == .deliver(InterruptMessage(address: 0xfee0_3004, data: 0xc161)))
    // With 8-bit destinations, all destination bits except 15:8 are reserved.
    guest.store(entry(vector: 0x61, destination: 0x1_0300), at: table + 32)
    #expect(remap(guest, message(2)) == .blocked(.interruptEntryReserved))
  }

  @Test("a subhandle is added to the handle, and bit 15 of the handle is address bit 2")
  func subhandles() throws {
    let (guest, table) = try start(size: 15)
    guest.store(entry(vector: 0x31, destination: 1), at: table + 12 * 16)
    #expect(remap(guest, message(8, subhandle: 4)) == .deliver(InterruptMessage(address: 0xfee0_1008, data: 0x4031)))
    #expect(InterruptRequest(message(0x8003)) == .remappable(index: 0x8003))
    #expect(InterruptRequest(message(0xffff, subhandle: 0xffff)) == .remappable(index: 0x1fffe))
    #expect(remap(guest, message(0xffff, subhandle: 0xffff)) == .blocked(.interruptIndexBeyondTable))
    // Without a subhandle, the unit ignores the message's data.
    var withData = message(12)
    withData.data = 0xffff_ffff
    #expect(remap(guest, withData) == .deliver(InterruptMessage(address: 0xfee0_1008, data: 0x4031)))
  }

  @Test("each fault is recorded with its index in bits 63:48 and its source")
  func faults() throws {
    let (guest, table) = try start()
    func expect(_ reason: FaultReason, _ message: InterruptMessage, index: UInt64, recorded: Bool = true) {
      #expect(remap(guest, message) == .blocked(reason))
      let fault = guest.takeFault()
      #expect((fault != nil) == recorded, "\(reason)")
      guard let fault else { return }
      #expect(fault.reason == reason.rawValue)
      #expect(fault.address == index << 48, "\(reason)")
      #expect(fault.source == device.rawValue)
    }
    var malformed = message(3, subhandle: 0x1_0000)
    expect(.interruptRequestReserved, malformed, index: 3)
    malformed = message(3)
    malformed.address |= 1 << 40
    expect(.interruptRequestReserved, malformed, index: 3)
    expect(.interruptIndexBeyondTable, message(256), index: 256)
    expect(.interruptEntryNotPresent, message(7), index: 7)
    guest.store(2, at: table + 7 * 16)
    expect(.interruptEntryNotPresent, message(7), index: 7, recorded: false)
    for bit in [12, 13, 14, 15, 24, 31] {
      guest.store(entry(vector: 0x31, destination: 1) | 1 << UInt64(bit), at: table + 7 * 16)
      expect(.interruptEntryReserved, message(7), index: 7)
    }
    guest.store(entry(vector: 0x31, destination: 1), at: table + 7 * 16)
    guest.store(1 << 20, at: table + 7 * 16 + 8)
    expect(.interruptEntryReserved, message(7), index: 7)
    guest.store(verify(ioapic), at: table + 7 * 16 + 8)
    expect(.interruptSourceValidation, message(7), index: 7)
    guest.store(entry(vector: 0x31, destination: 1) | 2, at: table + 8 * 16)
    guest.store(verify(ioapic), at: table + 8 * 16 + 8)
    expect(.interruptSourceValidation, message(8), index: 8, recorded: false)
    expect(.compatibilityFormatBlocked, InterruptMessage(address: 0xfee0_0000, data: 0x31), index: 0)
    guest.write64(0xb8, 0x70_0000_0800)
    guest.command(set: 24)
    expect(.interruptEntryAccess, message(1), index: 1)
    #expect(guest.unit.counters[.interruptsBlocked] == 16)
    #expect(guest.unit.counters[.faults] == 0, "this counter is for DMA faults")
  }

  @Test("remapping without recording changes no counter and records no fault")
  func unrecorded() throws {
    let (guest, _) = try start()
    #expect(guest.unit.remap(message(1), from: device, recordFault: false) == .blocked(.interruptEntryNotPresent))
    #expect(guest.unit.counters[.interruptsBlocked] == 0)
    #expect(guest.takeFault() == nil)
  }

  @Test(
    "source validation compares the bits that SVT and SQ select",
    arguments: [
      (0, 0, 0xffff, true), (1, 0, 0x18, true), (1, 0, 0x19, false), (1, 1, 0x1c, true), (1, 1, 0x1a, false),
      (1, 2, 0x1e, true), (1, 2, 0x19, false), (1, 3, 0x1f, true), (1, 3, 0x20, false), (3, 0, 0x18, false),
    ] as [(UInt64, UInt64, UInt16, Bool)])
  func validation(type: UInt64, qualifier: UInt64, source: UInt16, accepted: Bool) {
    let entry = InterruptEntry(low: 1, high: 0x18 | qualifier << 16 | type << 18)
    #expect(entry.accepts(RequesterID(rawValue: source)) == accepted)
  }

  @Test("source validation by bus accepts buses from SID[15:8] to SID[7:0]")
  func busValidation() {
    let entry = InterruptEntry(low: 1, high: 0x0204 | 2 << 18)
    for bus: UInt8 in 0..<8 {
      #expect(entry.accepts(RequesterID(bus: bus, device: 9, function: 1)) == (2...4).contains(bus))
    }
  }

  @Test("CFI permits the compatibility format, but never with 32-bit destinations", arguments: [false, true])
  func compatibilityFormat(extended: Bool) throws {
    let (guest, _) = try start(extended: extended)
    let message = InterruptMessage(address: 0xfee0_1000, data: 0x41)
    #expect(remap(guest, message) == .blocked(.compatibilityFormatBlocked))
    guest.command(set: 23)
    #expect(remap(guest, message) == (extended ? .blocked(.compatibilityFormatBlocked) : .deliver(message)))
    guest.command(clear: 23)
    #expect(remap(guest, message) == .blocked(.compatibilityFormatBlocked))
  }

  @Test("without EIM, the unit ignores EIME (the enable bit) and uses 8-bit destinations")
  func noExtendedMode() throws {
    let (guest, table) = try start { $0.extendedInterruptMode = false }
    guest.store(entry(vector: 0x61, destination: 0x0300), at: table)
    #expect(remap(guest, message(0)) == .deliver(InterruptMessage(address: 0xfee0_3008, data: 0x4061)))
  }

  @Test("entries are cached until an invalidation names them")
  func cache() throws {
    let (guest, table) = try start()
    let slot = table + 20 * 16
    guest.store(entry(vector: 0x31, destination: 1), at: slot)
    let before = RemappedInterrupt.deliver(InterruptMessage(address: 0xfee0_1008, data: 0x4031))
    let after = RemappedInterrupt.deliver(InterruptMessage(address: 0xfee0_1008, data: 0x4032))
    let selective: UInt64 = 4 | 1 << 4
    let removers: [UInt64] = [4, selective | 20 << 32, selective | 2 << 27 | 22 << 32, selective | 31 << 27]
    let survivors: [UInt64] = [selective | 21 << 32, selective | 2 << 27 | 24 << 32]
    for remover in removers {
      guest.store(entry(vector: 0x31, destination: 1), at: slot)
      #expect(remap(guest, message(20)) == before)
      guest.store(entry(vector: 0x32, destination: 1), at: slot)
      for survivor in survivors {
        #expect(guest.submitAndWait([survivor, 0]))
        #expect(remap(guest, message(20)) == before)
      }
      #expect(guest.submitAndWait([remover, 0]))
      #expect(remap(guest, message(20)) == after)
      #expect(guest.submitAndWait([4, 0]))
    }
    // An entry that is not present is not cached.
    guest.store(0, at: slot)
    #expect(guest.submitAndWait([4, 0]))
    #expect(remap(guest, message(20)) == .blocked(.interruptEntryNotPresent))
    guest.store(entry(vector: 0x32, destination: 1), at: slot)
    #expect(remap(guest, message(20)) == after)
  }

  @Test("observers are notified of invalidated entries and of changes of remapping")
  func observers() throws {
    let (guest, _) = try start()
    #expect(guest.observer.take() == [.interruptRemappingChanged, .interruptRemappingChanged])
    #expect(guest.submitAndWait([4, 0], [0x3_0000_0014, 0]))
    #expect(guest.observer.take() == [.interruptEntries(0...0xffff), .interruptEntries(3...3)])
    guest.command(clear: 25)
    #expect(guest.observer.take() == [.interruptRemappingChanged])
    #expect(remap(guest, message(1)) == .deliver(message(1)))
  }
}
