import Hardware
import TestSupport
import Testing
import VTd

@testable import Machine

/// Records the names of traced events.
private final class TraceNames: TraceSink {
  private let notes = Notes<String>()

  var all: [TraceEvent?] { notes.all.map { TraceEvent(rawValue: $0) } }
  func record(_ event: String, unit: String?, _ arguments: [TraceArgument]) { notes.add(event) }
}

/// Follows messages from a route to their destination: a local APIC or memory.
@Suite struct MessageTests {
  private let memory = HeapMemory(size: 1 << 20)
  private let apics = RecordingInterrupts()
  private let requester = Requester(id: RequesterID(bus: 0, device: 2, function: 0), busMasterEnable: true)
  private var delivery: InterruptDelivery { InterruptDelivery(localInterrupts: apics, memory: memory) }

  @Test("a message to an interrupt address reaches the local APICs")
  func interruptAddressesReachTheLocalAPICs() {
    let route = delivery.makeRoute(for: requester)
    for address in [0xfee0_0000, 0xfeef_fffc] as [UInt64] {
      let message = InterruptMessage(address: address, data: 0x41)
      route.set(message)
      route.signal()
      #expect(apics.sent.last == message)
    }
    #expect(apics.sent.count == 2)
  }

  @Test("a message to any other address is a memory write")
  func otherAddressesAreMemory() throws {
    let route = delivery.makeRoute(for: requester)
    route.set(InterruptMessage(address: 0x8000, data: 0x1234_5678))
    #expect(memory.loadUInt32(at: 0x8000) == 0)
    route.signal()
    #expect(memory.loadUInt32(at: 0x8000) == 0x1234_5678)
    // These addresses are neither RAM nor interrupts: the messages are lost.
    for address in [0xfed0_0000, 0xfef0_0000, 0x1_0000_0000, 0x1_fee0_0000, .max - 3] as [UInt64] {
      route.set(InterruptMessage(address: address, data: 1))
      route.signal()
    }
    #expect(apics.sent.isEmpty)
    // The route sends interrupts again.
    route.set(InterruptMessage(address: 0xfee0_0000, data: 0x42))
    route.signal()
    #expect(apics.sent == [InterruptMessage(address: 0xfee0_0000, data: 0x42)])
    #expect(memory.loadUInt32(at: 0x8000) == 0x1234_5678)
  }

  @Test("a message to memory needs bus mastering")
  func aMessageToMemoryNeedsBusMastering() {
    let route = delivery.makeRoute(for: requester)
    route.set(InterruptMessage(address: 0x8000, data: 1))
    requester.busMasterEnable = false
    route.signal()
    #expect(memory.loadUInt32(at: 0x8000) == 0)
  }

  /// Bits 31:8 of the upper address register are bits 31:8 of the destination; bits 7:0 are reserved.
  @Test(
    arguments: [(0x0100, 0x0100), (0x0001_0100, 0x0001_0100), (0xffff_ffff, 0xffff_ff00), (1, 0)] as [(UInt64, UInt64)])
  func `the unit's events reach CPUs with a destination above 255`(upper: UInt64, destination: UInt64) throws {
    let delivery = delivery
    let unit = try RemappingUnit(
      options: UnitOptions(), memory: memory, faultEvent: delivery.makeUnremappedRoute(),
      invalidationEvent: delivery.makeUnremappedRoute(), messages: delivery, parking: SemaphoreParking())
    func write32(_ offset: UInt64, _ value: UInt64) { unit.write(offset: offset, width: .doubleword, value: value) }
    // FECTL and IECTL, each followed by its message registers.
    for (control, vector) in [(0x38, 0x41), (0xa0, 0x42)] as [(UInt64, UInt64)] {
      write32(control + 4, vector)
      write32(control + 8, 0xfee3_0000)
      write32(control + 12, upper)
      write32(control, 0)
    }
    // An invalidation wait with IF raises the completion event. Then a tail outside the queue raises the fault event
    // (IQE).
    _ = memory.storeUInt64(1 << 4 | 5, at: 0x3000)
    unit.write(offset: 0x90, width: .quadword, value: 0x3000)
    write32(0x18, 1 << 26)
    unit.write(offset: 0x88, width: .quadword, value: 0x10)
    unit.write(offset: 0x88, width: .quadword, value: 0x7_fff0)
    let address = destination << 32 | 0xfee3_0000
    #expect(
      apics.sent == [InterruptMessage(address: address, data: 0x42), InterruptMessage(address: address, data: 0x41)])
    // The page request event uses the same type of route.
    let route = delivery.makeUnremappedRoute()
    route.set(InterruptMessage(address: upper << 32 | 0xfee3_0000, data: 0x43))
    route.signal()
    #expect(apics.sent.last == InterruptMessage(address: address, data: 0x43))
  }

  @Test("interrupts are counted and traced when they are sent, not when their routes are computed")
  func requestsAreCounted() throws {
    let delivery = delivery
    let recorder = TraceNames()
    let unit = try RemappingUnit(
      options: UnitOptions(), memory: memory, faultEvent: delivery.makeUnremappedRoute(),
      invalidationEvent: delivery.makeUnremappedRoute(), messages: delivery,
      trace: Trace([.interruptRemapped, .interruptBlocked], sink: recorder), parking: SemaphoreParking())
    delivery.remap(by: unit)
    let counts = {
      let counters = unit.counters
      return [counters[.interruptsRemapped], counters[.interruptsPassed], counters[.interruptsBlocked]]
    }
    // IRTE 3: present, vector 0x55. Table of 256 entries at 0x8000; SIRTP, then IRE.
    _ = memory.storeUInt64(0x55 << 16 | 1, at: 0x8030)
    unit.write(offset: 0xb8, width: .quadword, value: 0x8007)
    unit.write(offset: 0x18, width: .doubleword, value: 1 << 24)
    let (passed, remapped, blocked) = (
      delivery.makeRoute(for: requester), delivery.makeRoute(for: requester), delivery.makeRoute(for: requester)
    )
    passed.set(InterruptMessage(address: 0xfee0_0000, data: 0x41))
    passed.signal()
    #expect(counts() == [0, 1, 0])
    // Each of these writes recomputes every route.
    unit.write(offset: 0x18, width: .doubleword, value: 1 << 25)
    remapped.set(InterruptMessage(address: 0xfee0_0010 | 3 << 5, data: 0))
    blocked.set(InterruptMessage(address: 0xfee0_0010 | 4 << 5, data: 0))
    for _ in 0..<3 { unit.write(offset: 0x18, width: .doubleword, value: 1 << 24 | 1 << 25) }
    #expect(counts() == [0, 1, 0] && recorder.all.isEmpty)
    for _ in 0..<3 { remapped.signal() }
    blocked.signal()
    passed.signal()
    #expect(counts() == [3, 1, 2])
    #expect(
      recorder.all == [
        .interruptRemapped, .interruptRemapped, .interruptRemapped, .interruptBlocked, .interruptBlocked,
      ])
    delivery.send(InterruptMessage(address: 0xfee0_0010 | 3 << 5, data: 0), from: requester.id)
    #expect(counts() == [4, 1, 2])
    #expect(apics.sent.count == 5)
  }

  @Test("the unit blocks a message to memory that its tables do not map, and records a fault")
  func aMessageToMemoryIsTranslated() throws {
    let delivery = delivery
    let event = delivery.makeUnremappedRoute()
    let unit = try RemappingUnit(
      options: UnitOptions(), memory: memory, faultEvent: event,
      invalidationEvent: delivery.makeUnremappedRoute(), messages: delivery, parking: SemaphoreParking())
    delivery.remap(by: unit)
    let route = delivery.makeRoute(for: requester)
    route.set(InterruptMessage(address: 0x8000, data: 7))
    // Legacy mode with an empty root table: SRTP, then TE. The fault event is a message to memory, too.
    unit.write(offset: 0x20, width: .quadword, value: 0x1_0000)
    unit.write(offset: 0x3c, width: .doubleword, value: 0xabcd)
    unit.write(offset: 0x40, width: .doubleword, value: 0x9000)
    unit.write(offset: 0x38, width: .doubleword, value: 0)
    unit.write(offset: 0x18, width: .doubleword, value: 1 << 30)
    unit.write(offset: 0x18, width: .doubleword, value: 1 << 31)
    route.signal()
    #expect(memory.loadUInt32(at: 0x8000) == 0)
    #expect(unit.read(offset: 0x34, width: .doubleword) & 2 != 0)
    #expect(memory.loadUInt32(at: 0x9000) == 0xabcd)
    #expect(apics.sent.isEmpty)
    unit.write(offset: 0x18, width: .doubleword, value: 0)
    route.signal()
    #expect(memory.loadUInt32(at: 0x8000) == 7)
  }
}
