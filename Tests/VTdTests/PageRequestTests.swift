import Hardware
import Testing
import VTdOracle

@testable import VTd

/// The page request queue and page group responses (VT-d 7.4 to 7.7, 11.4.11).
@Suite("page requests")
struct PageRequestTests {
  let source = RequesterID(rawValue: 0x18)

  /// Sets up PRE in addition to DTE and PASIDE.
  func started(contextBits: UInt64 = 0x1c, queue: Bool = true) throws -> (Guest, any RequestPort, UInt64) {
    let guest = try Guest.firstStage { TranslationRequestTests.all(&$0) }
    let table = guest.page()
    guest.map(0x1000, in: table, levels: 4, entry: 0x20_0067, tableBits: 0x27)
    _ = guest.startScalable(source, Guest.pasidEntry(type: 1, firstStage: table), contextBits: contextBits)
    let base = guest.page()
    if queue { guest.write64(0xd0, base) }
    return (guest, guest.requestPort(source), base)
  }

  func request(
    _ address: UInt64 = 0x1234_5678, last: Bool = true, index: UInt16 = 7, prefix: PASIDPrefix? = PASIDPrefix(pasid: 3)
  ) -> PageRequest {
    PageRequest(address: address, prefix: prefix, reads: true, writes: true, isLastInGroup: last, groupIndex: index)
  }

  @Test("a page request descriptor has the specified bits")
  func descriptor() throws {
    let (guest, port, base) = try started()
    let prefix = PASIDPrefix(pasid: 0xabcde, isPrivileged: true, executes: true)
    #expect(port.requestPage(request(index: 0x1ff, prefix: prefix)) == .queued)
    #expect(port.requestPage(request(last: false, prefix: nil)) == .queued)
    #expect(port.requestPage(.stopMarker(pasid: 3)) == .queued)
    #expect(guest.load(base) == 0x003a_bcde_0018_0101)
    #expect(guest.load(base + 8) == 0x1234_5fff)
    #expect(guest.load(base + 32) == 0x0018_0001)
    #expect(guest.load(base + 40) == 0x1234_503b)
    #expect(guest.load(base + 64) == 0x0000_0003_0018_0101)
    #expect(guest.load(base + 72) == 4)
    #expect(guest.read64(0xc8) == 96)
    #expect(guest.read64(0xc0) == 0)
    #expect(guest.unit.counters[.pageRequests] == 3)
  }

  @Test("a request raises the event, and the next ones raise none until software serves it")
  func event() throws {
    let (guest, port, _) = try started()
    #expect(guest.read32(0xe0) == 0x8000_0000)
    guest.write32(0xe4, 0x4044)
    guest.write32(0xe8, 0xfee0_2000)
    #expect(port.requestPage(request()) == .queued)
    #expect(guest.read32(0xdc) == 1)
    #expect(guest.read32(0xe0) == 0xc000_0000)
    #expect(guest.events.deliveries.isEmpty)
    guest.write32(0xe0, 0)
    #expect(guest.events.messages == [InterruptMessage(address: 0xfee0_2000, data: 0x4044)])
    #expect(guest.events.deliveries.map(\.requester) == [Guest.pageRequestSource])
    #expect(port.requestPage(request()) == .queued)
    #expect(guest.events.messages.count == 1)
    guest.write32(0xdc, 1)
    #expect(guest.read32(0xdc) == 0)
    #expect(port.requestPage(request()) == .queued)
    #expect(guest.events.messages.count == 2)
    // An event that is served while masked is no longer pending.
    guest.write32(0xdc, 1)
    guest.write32(0xe0, 0x8000_0000)
    #expect(port.requestPage(request()) == .queued)
    #expect(guest.read32(0xe0) == 0xc000_0000)
    guest.write32(0xdc, 3)
    #expect(guest.read32(0xe0) == 0x8000_0000)
  }

  @Test("on overflow the last request of a group is answered with success, and others are lost")
  func overflow() throws {
    let (guest, port, _) = try started()
    for _ in 0..<127 { #expect(port.requestPage(request()) == .queued) }
    #expect(port.requestPage(request()) == .answered(.success))
    #expect(guest.read32(0xdc) == 3)
    #expect(guest.read64(0xc8) == 127 * 32)
    // There is room, but software has not cleared the overflow.
    guest.write64(0xc0, 64)
    #expect(port.requestPage(request()) == .answered(.success))
    #expect(port.requestPage(request(last: false)) == .discarded)
    guest.write32(0xdc, 2)
    #expect(port.requestPage(request()) == .queued)
    #expect(guest.read64(0xc8) == 0, "the tail has wrapped around")
    #expect(guest.takeFault() == nil)
  }

  @Test("no head, tail or address that software writes causes harm")
  func hostileRegisters() throws {
    let (guest, port, _) = try started(queue: false)
    guest.write64(0xd0, .max)
    #expect(port.requestPage(request()) == .answered(.responseFailure), "not in memory")
    for value: UInt64 in [0x7_ffe0, .max, 0x1010, 0x20] {
      guest.write64(0xd0, 0x40_0000)
      guest.write64(0xc0, value)
      guest.write64(0xc8, value)
      _ = port.requestPage(request())
      #expect(guest.read64(0xc8) < 0x1000)
      guest.write32(0xdc, 3)
    }
  }

  @Test("the unit answers a forbidden page request with Invalid Request, and records a page request fault")
  func forbidden() throws {
    for (contextBits, reason): (UInt64, UInt8) in [(0xc, 0x47), (0x18, 0x44), (0x14, 0x45)] {
      let (guest, port, _) = try started(contextBits: contextBits)
      #expect(port.requestPage(request()) == .answered(.invalidRequest))
      let high = guest.read64(0x228)
      #expect(high[bit: 28] && !high[bit: 62])
      let fault = try #require(guest.takeFault())
      #expect(fault.reason == reason)
      #expect(fault.address == 0x1234_5000)
      #expect(fault.pasid == 3)
      #expect(port.requestPage(request(last: false)) == .discarded)
      #expect(guest.read64(0xc8) == 0)
    }
    let (guest, port, _) = try started()
    guest.command(clear: 31)
    #expect(port.requestPage(request()) == .answered(.invalidRequest))
  }

  @Test("the fault of a page request has type 01b for reads and writes", arguments: [false, true])
  func faultType(writes: Bool) throws {
    let (guest, port, _) = try started(contextBits: 0xc)
    _ = port.requestPage(
      PageRequest(address: 0x1000, prefix: nil, reads: true, writes: writes, isLastInGroup: true, groupIndex: 0))
    let high = guest.read64(0x228)
    #expect(high[bit: 63] && !high[bit: 62] && high[bit: 28], "F, T1, T2")
  }

  @Test("a page request invalidates the cached page")
  func implicitInvalidation() throws {
    let (guest, port, _) = try started()
    let memory = port.dmaPort(for: nil)
    #expect(memory.answer(0x1000) == .at(0x20_0000, 8))
    let misses = guest.unit.counters[.iotlbMisses]
    #expect(port.requestPage(request(0x1000, prefix: PASIDPrefix(pasid: 0))) == .queued)
    #expect(memory.answer(0x1000) == .at(0x20_0000, 8))
    #expect(guest.unit.counters[.iotlbMisses] == misses + 1)
  }

  @Test("responses reach the function")
  func responses() throws {
    let (guest, port, _) = try started()
    let cache = RecordingCache(port)
    guest.enableQueue(wide: true)
    let descriptors: [[UInt64]] = [
      [0x3_0018_0019, 0x3c], [0x0018_1009, 0xff8], [0x0018_f009, 0], [0x0018_7009, 0], [0x0020_0009, 0],
    ]
    for descriptor in descriptors { #expect(guest.submitAndWait(descriptor)) }
    #expect(
      cache.responses == [
        PageGroupResponse(code: .success, groupIndex: 7, pasid: 3),
        PageGroupResponse(code: .invalidRequest, groupIndex: 0x1ff, pasid: nil),
        PageGroupResponse(code: .responseFailure, groupIndex: 0, pasid: nil),
        PageGroupResponse(code: .responseFailure, groupIndex: 0, pasid: nil),
      ])
    port.connect(nil)
  }

  @Test("reserved bits of a page group response are an error, and a wait may drain page requests")
  func reserved() throws {
    let (guest, _, _) = try started()
    guest.enableQueue(wide: true)
    let drain: [UInt64] = [0x1_0000_00a5, guest.statusPage]
    #expect(guest.submitAndWait(drain), "PD is offered with PDS")
    for descriptor: [UInt64] in [[0x29, 0], [0x109, 0], [0x10_0000_0000_0009, 0], [9, 1], [9, 0x1000]] {
      #expect(!guest.submitAndWait(descriptor))
      #expect(guest.read64(0xb0) & 0xf == 4)
      let head = guest.read64(0x80)
      guest.store(2 | 1 << 4, at: guest.queueBase + head)
      guest.store(0, at: guest.queueBase + head + 8)
      guest.write32(0x34, 0x10)
      #expect(guest.read64(0x80) == guest.read64(0x88))
    }
  }

  @Test("without svm there are no page request registers, and requests and responses are refused")
  func notOffered() throws {
    let guest = try Guest.firstStage {
      $0.deviceIOTLB = true
      $0.pasidBits = 20
    }
    for offset in [0xc0, 0xc8, 0xd0, 0xe0] {
      guest.write64(offset, .max)
      #expect(guest.read64(offset) == 0)
    }
    #expect(guest.requestPort(source).requestPage(request()) == .answered(.invalidRequest))
    guest.enableQueue(wide: true)
    #expect(!guest.submitAndWait([9, 0]))
    #expect(guest.read64(0xb0) & 0xf == 3)
  }

  @Test("ECAP reports PRS, NWFS and PDS")
  func capabilities() throws {
    let (guest, _, _) = try started()
    let ecap = guest.read64(0x10)
    #expect(ecap[bit: 29] && ecap[bit: 33] && ecap[bit: 42])
  }
}
