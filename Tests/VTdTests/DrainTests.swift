import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import VTd

/// An invalidation is complete when no request in flight uses what it removed (VT-d 6.5.5). Until then software sees no
/// status of a wait descriptor, no completion interrupt, no cleared busy bit and no new Global Status.
@Suite("draining of requests in flight", .timeLimit(.minutes(5)))
struct DrainTests {
  let source = RequesterID(bus: 0, device: 3, function: 0)
  private static let input: UInt64 = 0x1_0000_0000

  /// Sets up scalable mode with a first stage in domain 5 and one page.
  private func started(_ change: (inout UnitOptions) -> Void = { _ in }) throws -> (Guest, any DMAPort, UInt64) {
    let guest = try Guest.firstStage(change)
    let table = guest.page()
    guest.map(Self.input, in: table, levels: 4, entry: 0x20_0067, tableBits: 0x27)
    guest.start(source, scalable: Guest.pasidEntry(type: 1, firstStage: table))
    guest.enableQueue(wide: true)
    let port = guest.port(source)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    return (guest, port, guest.slot(of: Self.input, in: table, levels: 4))
  }

  /// Runs `ring` on a thread while a request is in flight, and checks that it waits for that request and for no later
  /// one.
  /// - Parameter isComplete: Returns whether software sees the end of the command.
  private func expectDrain(
    _ guest: Guest, _ port: any DMAPort, ring: @escaping @Sendable () -> Void, isComplete: () -> Bool
  ) {
    _ = guest.observer.take()
    let before = port.request()
    let thread = TestThread(ring)
    guest.parking.waitForSleeper()
    #expect(!isComplete())
    #expect(guest.observer.take().isEmpty)
    // Neither of these two requests delays `ring`, although `after` is in flight until the end.
    let after = port.request()
    _ = port.answer(Self.input)
    before.end()
    thread.join()
    #expect(isComplete())
    after.end()
  }

  @Test(
    "a wait descriptor completes after the requests that were in flight before it",
    arguments: [
      CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: input), CacheTests.pasidIOTLB(2, domain: 5, pasid: 0),
      CacheTests.iotlb(1), CacheTests.iotlb(2, domain: 5), CacheTests.iotlb(3, domain: 5, address: input),
      CacheTests.pasidCache(3), CacheTests.pasidCache(0, domain: 5), CacheTests.pasidCache(1, domain: 5, pasid: 0),
      CacheTests.contextCache(1), CacheTests.contextCache(2, domain: 9), CacheTests.contextCache(3, source: 0x18),
    ])
  func queue(descriptor: [UInt64]) throws {
    let (guest, port, _) = try started()
    let shared = Shared(guest)
    expectDrain(guest, port) {
      #expect(shared.guest.submitAndWait(descriptor))
    } isComplete: {
      guest.memory.loadUInt32(at: guest.statusPage) != 0
    }
  }

  @Test("a wait ignores requests in flight of another domain or device")
  func others() throws {
    let (guest, port, _) = try started()
    let request = port.request()
    for descriptor in [
      CacheTests.pasidIOTLB(3, domain: 6, pasid: 0, address: Self.input), CacheTests.pasidIOTLB(2, domain: 5, pasid: 1),
      CacheTests.iotlb(2, domain: 6), CacheTests.iotlb(3, domain: 6), CacheTests.pasidCache(0, domain: 6),
      CacheTests.pasidCache(1, domain: 5, pasid: 1), CacheTests.contextCache(3, source: 0x20), [4, 0],
    ] {
      #expect(guest.submitAndWait(descriptor))
    }
    request.end()
  }

  @Test("a wait includes requests that the function made under its former requester ID")
  func formerSource() throws {
    let guest = try Guest.firstStage()
    let table = guest.page()
    guest.map(Self.input, in: table, levels: 4, entry: 0x20_0067, tableBits: 0x27)
    let tables = guest.scalableTables(source: source, words: Guest.pasidEntry(type: 1, firstStage: table))
    // The next function is in domain 6.
    let directory = guest.page()
    let other = guest.page()
    guest.store(directory | 1, at: tables.context + 32)
    guest.store(other | 1, at: directory)
    let words = Guest.pasidEntry(type: 1, domain: 6, firstStage: table)
    guest.store(words.0, at: other)
    guest.store(words.1, at: other + 8)
    guest.store(words.2, at: other + 16)
    guest.setRootTable(tables.root, scalable: true)
    guest.enableTranslation()
    guest.enableQueue(wide: true)
    let requester = Requester(id: source, busMasterEnable: true)
    let port = guest.unit.makePort(for: requester)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    let request = port.request()
    requester.id = RequesterID(bus: 0, device: 3, function: 1)
    #expect(port.answer(Self.input) == .at(0x20_0000, 8))
    let shared = Shared(guest)
    let thread = TestThread { #expect(shared.guest.submitAndWait(CacheTests.iotlb(2, domain: 5))) }
    guest.parking.waitForSleeper()
    request.end()
    thread.join()
  }

  @Test("the invalidation event is sent after the requests in flight have ended")
  func interrupt() throws {
    let (guest, port, _) = try started()
    guest.write32(0xa4, 0x77)
    guest.write32(0xa8, 0xfee0_0000)
    guest.write32(0xa0, 0)
    let shared = Shared(guest)
    expectDrain(guest, port) {
      shared.guest.submit(CacheTests.iotlb(1), [0x15, 0])
    } isComplete: {
      guest.events.deliveries.contains { $0.requester == Guest.completionSource }
    }
  }

  @Test("a register-based invalidation is busy while earlier requests are in flight", arguments: [0x28, 0xf8])
  func registers(offset: Int) throws {
    let guest = try Guest()
    let table = guest.page()
    guest.map(0x5000, in: table, levels: 4, entry: 0x20_0003, tableBits: 3)
    let (root, _) = guest.legacyTables(source: source, secondStage: table)
    guest.setRootTable(root, scalable: false)
    guest.enableTranslation()
    let port = guest.port(source)
    #expect(port.answer(0x5000) == .at(0x20_0000, 8))
    let shared = Shared(guest)
    expectDrain(guest, port) {
      shared.guest.write64(offset, 1 << 63 | 1 << (offset == 0x28 ? 61 : 60))
    } isComplete: {
      !guest.read64(offset)[bit: 63]
    }
  }

  @Test("Global Status shows TES and RTPS only when no request uses the former tables")
  func globalStatus() throws {
    let (guest, port, _) = try started()
    let shared = Shared(guest)
    expectDrain(guest, port) {
      shared.guest.command(clear: 31)
    } isComplete: {
      !guest.status[bit: 31]
    }
    expectDrain(guest, port) {
      shared.guest.command(set: 31)
    } isComplete: {
      guest.status[bit: 31]
    }
    #expect(guest.status[bit: 30])
    expectDrain(guest, port) {
      shared.guest.command(set: 30)
    } isComplete: {
      guest.status[bit: 30]
    }
    #expect(guest.status == 0xc400_0000)
  }

  /// Runs `ring` while a function's interrupt is on its way to the local APIC, and checks that it waits for the
  /// interrupt.
  private func expectInterruptDrain(
    _ guest: Guest, _ port: any DMAPort, ring: @escaping @Sendable () -> Void, isComplete: () -> Bool
  ) {
    let (arrived, release) = (TestSemaphore(), TestSemaphore())
    guest.sink.onMessage {
      arrived.signal()
      release.wait()
    }
    let interrupting = TestThread { try? port.storeUInt32(0x41, at: 0xfee0_0010) }
    arrived.wait()
    guest.sink.onMessage {}
    let thread = TestThread(ring)
    guest.parking.waitForSleeper()
    #expect(!isComplete())
    release.signal()
    thread.join()
    interrupting.join()
    #expect(isComplete())
  }

  @Test("an interrupt entry invalidation waits for interrupts in flight")
  func interruptEntries() throws {
    let (guest, port, _) = try started()
    let shared = Shared(guest)
    expectInterruptDrain(guest, port) {
      #expect(shared.guest.submitAndWait([4, 0]))
    } isComplete: {
      guest.memory.loadUInt32(at: guest.statusPage) != 0
    }
  }

  @Test("IRES, CFIS and IRTPS change only after the interrupts in flight are delivered")
  func interruptStatus() throws {
    let (guest, port, _) = try started()
    let shared = Shared(guest)
    for bit in [24, 23, 25, 24] {
      expectInterruptDrain(guest, port) {
        shared.guest.command(set: bit)
      } isComplete: {
        guest.status[bit: bit]
      }
    }
    expectInterruptDrain(guest, port) {
      shared.guest.command(clear: 25)
    } isComplete: {
      !guest.status[bit: 25]
    }
  }

  @Test("a page request in progress is queued before a wait with PD completes")
  func pageRequests() throws {
    let memory = HookedMemory(size: Guest.memorySize)
    let guest = try Guest.firstStage(memory: memory) { TranslationRequestTests.all(&$0) }
    let tables = guest.startScalable(source, Guest.pasidEntry(type: 1, firstStage: guest.page()), contextBits: 0x1c)
    guest.write64(0xd0, guest.page())
    guest.enableQueue(wide: true)
    let port = guest.requestPort(source)
    let (arrived, release) = (TestSemaphore(), TestSemaphore())
    memory.onLoad(at: tables.context) {
      arrived.signal()
      release.wait()
    }
    let requesting = TestThread {
      let request = PageRequest(
        address: 0x1000, prefix: nil, reads: true, writes: false, isLastInGroup: true, groupIndex: 1)
      #expect(port.requestPage(request) == .queued)
    }
    arrived.wait()
    memory.onLoad(at: tables.context) {}
    let shared = Shared(guest)
    let status = guest.statusPage
    let thread = TestThread { shared.guest.submit([0x1_0000_00a5, status]) }
    guest.parking.waitForSleeper()
    #expect(guest.memory.loadUInt32(at: status) == 0)
    release.signal()
    thread.join()
    requesting.join()
    #expect(guest.memory.loadUInt32(at: status) == 1)
    #expect(guest.read64(0xc8) == 32)
  }

  @Test("a reset while a command waits leaves Global Status at its reset value")
  func resetMeanwhile() throws {
    let (guest, port, _) = try started()
    let shared = Shared(guest)
    let request = port.request()
    let thread = TestThread { shared.guest.command(clear: 31) }
    guest.parking.waitForSleeper()
    let other = TestThread { shared.guest.unit.reset() }
    while guest.status != 0 {}
    request.end()
    thread.join()
    other.join()
    #expect(guest.status == 0)
    guest.enableTranslation()
    #expect(guest.status == 0x8000_0000)
  }

  @Test("a port still records faults while an invalidation waits for a request in flight")
  func faults() throws {
    let (guest, port, _) = try started()
    let shared = Shared(guest)
    let request = port.request()
    let thread = TestThread { #expect(shared.guest.submitAndWait(CacheTests.iotlb(1))) }
    guest.parking.waitForSleeper()
    #expect(port.answer(0x7000) == .refused(.translation))
    #expect(guest.takeFault()?.reason == 0x71)
    #expect(throws: DMAError.translation) { try port.loadUInt32(at: 0x7000) }
    request.end()
    thread.join()
  }

  @Test("once an unmap is complete, the device cannot change the page")
  func unmap() throws {
    let (guest, port, slot) = try started()
    let shared = Shared(guest)
    guest.store(0, at: slot)
    #expect(guest.submitAndWait(CacheTests.iotlb(1)))
    let stop = SharedInteger()
    let attempts = SharedInteger()
    // The device writes as drivers do, and also writes for a long time to an address that it translated once.
    let writer = TestThread {
      var value: UInt64 = 1
      let bytes = [UInt8](repeating: 0xa5, count: 64)
      while stop.value == 0 {
        try? port.storeUInt64(value, at: Self.input)
        try? port.write(bytes.span.bytes, to: Self.input + 64)
        let request = port.request()
        if let segment = try? port.translate(Self.input, count: 4096, for: .write) {
          for word in 16..<UInt64(64) {
            value += 1
            _ = port.memory.storeUInt64(value, at: segment.address + 8 * word)
          }
        }
        request.end()
        attempts.increment()
      }
    }
    guard let memory = guest.memory as? HeapMemory else { throw DrainTestError() }
    for round in 0..<100 {
      let page: UInt64 = 0x40_0000 + UInt64(round) * 0x1000
      guest.store(page | 0x67, at: slot)
      let mapped = attempts.value
      while attempts.value < mapped + 3 {}
      guest.store(0, at: slot)
      #expect(shared.guest.submitAndWait(CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: Self.input)))
      let unmapped = memory.copy(page, count: 4096)
      #expect(unmapped?.contains { $0 != 0 } == true)
      let seen = attempts.value
      while attempts.value < seen + 3 {}
      #expect(memory.copy(page, count: 4096) == unmapped)
    }
    stop.value = 1
    writer.join()
  }
}

private struct DrainTestError: Error {}

/// Several threads use the guest, but only one at a time.
struct Shared: @unchecked Sendable {
  let guest: Guest
  init(_ guest: Guest) { self.guest = guest }
}
