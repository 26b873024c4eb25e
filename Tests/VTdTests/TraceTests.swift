import Hardware
import Synchronization
import Testing
import VTdOracle

@testable import VTd

/// The trace events of a unit; it emits only the enabled ones.
struct TraceTests {
  private final class Recorder: TraceSink {
    private let log = Mutex<[(event: TraceEvent, unit: String?, arguments: [TraceArgument])]>([])

    func record(_ event: String, unit: String?, _ arguments: [TraceArgument]) {
      guard let known = TraceEvent(rawValue: event) else {
        Issue.record("no event is named \(event)")
        return
      }
      log.withLock { $0.append((known, unit, arguments)) }
    }

    func take() -> [(event: TraceEvent, unit: String?, arguments: [TraceArgument])] {
      log.withLock { log in
        defer { log = [] }
        return log
      }
    }
  }

  private let recorder = Recorder()
  private let source = RequesterID(bus: 0, device: 3, function: 0)

  private func guest(_ events: [TraceEvent], unit: String? = nil, _ change: (inout UnitOptions) -> Void) throws -> Guest
  {
    try Guest(trace: Trace(events, unit: unit, sink: recorder), change)
  }

  private func value(_ name: String, in arguments: [TraceArgument]) -> TraceArgument.Value? {
    arguments.first { $0.name == name }?.value
  }

  @Test("walks and faults are traced with their arguments, and cache hits are not") func requestsAreTold() throws {
    let guest = try guest([.contextCached, .pasidEntryCached, .walked, .faulted]) {
      $0.scalableMode = true
      $0.firstStage = true
    }
    let root = guest.page()
    guest.map(0x3000, in: root, levels: 4, entry: 0x7000 | Guest.firstStageLeaf, tableBits: Guest.firstStageTable)
    guest.start(source, scalable: Guest.pasidEntry(type: 1, firstStage: root))
    let port = guest.port(source)
    _ = port.answer(0x3010)
    let first = recorder.take()
    #expect(first.map(\.event) == [.contextCached, .pasidEntryCached, .walked])
    #expect(value("iova", in: first[2].arguments) == .hexadecimal(0x3010))
    #expect(value("gpa", in: first[2].arguments) == .hexadecimal(0x7010))
    #expect(value("mask", in: first[2].arguments) == .hexadecimal(0xfff))
    #expect(value("domain", in: first[2].arguments) == .hexadecimal(5))
    // A cache hit is no event.
    _ = port.answer(0x3020)
    #expect(recorder.take().isEmpty)
    _ = port.answer(0x4000, .write)
    let fault = recorder.take()
    #expect(fault.map(\.event) == [.faulted])
    #expect(value("sid", in: fault[0].arguments) == .source(source))
    #expect(value("fault", in: fault[0].arguments) == .hexadecimal(0x71))
    #expect(value("write", in: fault[0].arguments) == .flag(true))
    #expect(value("suppressed", in: fault[0].arguments) == .flag(false))
  }

  @Test("register accesses, descriptors and queue errors are traced") func registersAndQueueAreTold() throws {
    let guest = try guest(TraceEvent.allCases, unit: "b") { $0.scalableMode = true }
    guest.enableQueue(wide: true)
    #expect(recorder.take().map(\.event).contains(.queueEnabled))
    guest.setRootTable(0x5000, scalable: true)
    let set = recorder.take()
    #expect(set.map(\.event) == [.registerWrite, .registerRead, .registerWrite, .rootTableSet])
    #expect(set.allSatisfy { $0.unit == "b" })
    #expect(value("scalable", in: set[3].arguments) == .flag(true))
    #expect(value("value", in: set[0].arguments) == .hexadecimal(0x5400))
    guest.enableTranslation()
    #expect(recorder.take().last?.event == .translationEnabled)

    // An invalidation of domain 7 in each cache (context, IOTLB, PASID), and a wait.
    #expect(guest.submitAndWait([0x7_0021], [0x7_0022], [0x7_0007]))
    let events = recorder.take().map(\.event).filter { $0 != .registerWrite }
    #expect(
      events == [
        .descriptor, .invalidateDomainContexts, .descriptor, .invalidateDomainTranslations, .descriptor,
        .invalidateDomainPASIDs, .descriptor, .waitStatus,
      ])
    guest.submit([0xf])
    #expect(recorder.take().map(\.event).suffix(2) == [.descriptor, .queueError])
    // The queue error raises a fault event once the event is unmasked.
    guest.write32(0x38, 0)
    #expect(recorder.take().map(\.event) == [.registerWrite, .eventRaised])
  }

  @Test("interrupt entries and remapped and blocked interrupts are traced") func interruptsAreTold() throws {
    let guest = try guest([.interruptEntryRead, .interruptRemapped, .interruptBlocked]) { _ in }
    let table = guest.page()
    guest.store(0x0000_0100_0041_0001, at: table + 5 * 16)
    guest.write64(0xb8, table | 7)
    guest.command(set: 24)
    guest.command(set: 25)
    for index in [5, 5, 6] as [UInt64] {
      _ = guest.unit.remap(
        InterruptMessage(address: 0xfee0_0010 | index << 5, data: 0), from: source, recordFault: true)
    }
    let events = recorder.take()
    #expect(
      events.map(\.event) == [
        .interruptEntryRead, .interruptRemapped, .interruptRemapped, .interruptEntryRead, .interruptBlocked,
      ])
    #expect(value("fault", in: events[4].arguments) == .hexadecimal(0x22))
  }

  @Test("events can be switched on and off at any time") func eventsAreSwitchedAnyTime() throws {
    let trace = Trace([], sink: recorder)
    let guest = try Guest(trace: trace)
    _ = guest.read32(0)
    #expect(recorder.take().isEmpty)
    trace.set([.registerRead])
    _ = guest.read32(0)
    let read = recorder.take()
    #expect(read.map(\.event) == [.registerRead])
    #expect(value("value", in: read[0].arguments) == .hexadecimal(0x10))
    trace.set([])
    _ = guest.read32(0)
    #expect(recorder.take().isEmpty)
  }

  @Test("event names are unique, and event numbers fit into 64 bits") func namesDiffer() {
    #expect(Set(TraceEvent.allCases.map(\.name)).count == TraceEvent.allCases.count)
    #expect(TraceEvent.allCases.count <= 64 && TraceEvent.allCases.allSatisfy { $0.name.hasPrefix("vtd_") })
  }
}
