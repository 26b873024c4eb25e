import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import VTd

/// Device-TLB invalidations and who answers them (VT-d 6.5.2.5, 6.5.2.6, 6.5.2.10, 6.5.2.11).
@Suite("Device-TLB invalidations", .timeLimit(.minutes(5)))
struct DeviceInvalidationTests {
  let source = RequesterID(rawValue: 0x18)
  let timer = HandTimer()
  static let whole: [UInt64] = [3 | 0x18 << 32, 0x1234_5000]

  func started(timed: Bool = true, answersAtOnce: Bool = false) throws -> (Guest, any RequestPort, RecordingCache) {
    let guest = try Guest(deviceTimer: timed ? timer : nil) {
      $0.scalableMode = true
      $0.deviceIOTLB = true
      $0.pasidBits = 8
    }
    let tables = guest.scalableTables(source: RequesterID(rawValue: 0), words: (0, 0, 0))
    guest.setRootTable(tables.root, scalable: true)
    guest.enableQueue(wide: true)
    let port = guest.requestPort(source)
    return (guest, port, RecordingCache(port, answersAtOnce: answersAtOnce))
  }

  func status(_ guest: Guest) -> UInt32 { guest.read32(0x34) & 0x70 }

  @Test("The function is told what goes, and who answers at once holds nothing up")
  func atOnce() throws {
    let (guest, _, cache) = try started(answersAtOnce: true)
    #expect(guest.submitAndWait(Self.whole, [0x4_0018_0008, 0x5800], [0x0018_0008, 0x5001]))
    #expect(
      cache.invalidations == [
        InvalidateRequest(tag: 0, pasid: nil, isGlobal: false, first: 0x1234_5000, last: 0x1234_5fff),
        InvalidateRequest(tag: 1, pasid: 4, isGlobal: false, first: 0x4000, last: 0x7fff),
        InvalidateRequest(tag: 2, pasid: nil, isGlobal: true, first: 0x5000, last: 0x5fff),
      ])
    #expect(!timer.isRunning)
    #expect(status(guest) == 0)
  }

  @Test("A wait descriptor is parked until the function answers; the vCPU is not")
  func later() throws {
    let (guest, port, cache) = try started()
    #expect(!guest.submitAndWait(Self.whole, Self.whole))
    #expect(guest.read64(0x80) == guest.read64(0x88), "all is fetched")
    #expect(timer.isRunning)
    // What is behind the wait waits, too.
    guest.submit([2 | 1 << 4, 0])
    #expect(guest.read64(0x80) != guest.read64(0x88))
    port.completeInvalidations(1)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 0)
    port.completeInvalidations(2)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 1)
    #expect(guest.read64(0x80) == guest.read64(0x88))
    #expect(status(guest) == 0)
    timer.fire()
    timer.fire()
    #expect(status(guest) == 0)
    #expect(cache.invalidations.count == 2)
    #expect(guest.submitAndWait([2 | 1 << 4, 0]))
  }

  @Test("Answers from another thread complete the wait, again and again")
  func threads() throws {
    let (guest, port, cache) = try started()
    for round in 1...200 {
      let before = cache.invalidations.count
      let thread = TestThread {
        while cache.invalidations.count == before {}
        if let tag = cache.invalidations.last?.tag { port.completeInvalidations(1 << UInt32(tag)) }
      }
      _ = guest.submitAndWait(Self.whole)
      thread.join()
      #expect(guest.memory.loadUInt32(at: guest.statusPage) == UInt32(round))
    }
    #expect(status(guest) == 0)
  }

  @Test("Who does not answer makes ITE: the wait is aborted, the queue stops, and goes on when ITE is cleared")
  func timeout() throws {
    let (guest, port, cache) = try started()
    guest.write32(0x38, 0)
    #expect(!guest.submitAndWait(Self.whole))
    timer.fire()
    #expect(status(guest) == 0)
    timer.fire()
    #expect(status(guest) == 0x40)
    #expect(guest.read64(0xb0)[bits: 32...47] == 0x18)
    #expect(guest.events.deliveries.map(\.requester) == [Guest.faultSource])
    #expect(!timer.isRunning)
    // Nothing is fetched.
    cache.answerAtOnce(true)
    #expect(!guest.submitAndWait(Self.whole))
    #expect(cache.invalidations.count == 1)
    guest.write32(0x34, 0x40)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 2)
    #expect(guest.read64(0x80) == guest.read64(0x88))
    // The answer comes too late: nobody waits for it.
    port.completeInvalidations(1)
    #expect(status(guest) == 0x20)
    #expect(guest.read64(0xb0)[bits: 48...63] == 0x18)
    // ICE stops nothing.
    #expect(guest.submitAndWait(Self.whole))
    guest.write32(0x34, 0x20)
    #expect(status(guest) == 0)
  }

  @Test("The error record keeps the first source until software clears the error")
  func firstSource() throws {
    let (guest, _, _) = try started()
    let other = guest.requestPort(RequesterID(rawValue: 0x20))
    let third = guest.requestPort(RequesterID(rawValue: 0x28))
    other.completeInvalidations(1)
    third.completeInvalidations(1)
    #expect(guest.read64(0xb0)[bits: 48...63] == 0x20)
    guest.write32(0x34, 0x20)
    third.completeInvalidations(1)
    #expect(guest.read64(0xb0)[bits: 48...63] == 0x28)

    // Two functions do not answer in time.
    let cache = RecordingCache(other, answersAtOnce: false)
    guest.submit(Self.whole)
    timer.fire()
    guest.submit([3 | 0x20 << 32, 0x1234_5000])
    timer.fire()
    #expect(guest.read64(0xb0)[bits: 32...47] == 0x18)
    timer.fire()
    #expect(guest.read64(0xb0)[bits: 32...47] == 0x18)
    #expect(cache.invalidations.count == 1)
  }

  @Test("An answer with a wrong tag, or from another function, is ICE; the right one still counts")
  func wrongAnswer() throws {
    let (guest, port, _) = try started()
    #expect(!guest.submitAndWait(Self.whole))
    port.completeInvalidations(2)
    #expect(status(guest) == 0x20)
    guest.write32(0x34, 0x20)
    guest.requestPort(RequesterID(rawValue: 0x20)).completeInvalidations(1)
    #expect(status(guest) == 0x20)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 0)
    port.completeInvalidations(1)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 1)
  }

  @Test("Without a timer, who does not answer at once has timed out")
  func noTimer() throws {
    let (guest, _, _) = try started(timed: false)
    #expect(!guest.submitAndWait(Self.whole))
    #expect(status(guest) == 0x40)
  }

  @Test("Of more invalidations than tags, the rest follow as answers come")
  func tags() throws {
    let (guest, port, cache) = try started()
    for _ in 0..<40 { guest.submit(Self.whole) }
    #expect(!guest.submitAndWait())
    #expect(cache.invalidations.count == 32)
    #expect(Set(cache.invalidations.map(\.tag)).count == 32)
    port.completeInvalidations(.max)
    #expect(cache.invalidations.count == 40)
    port.completeInvalidations(0xff)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 1)
    #expect(status(guest) == 0)
  }

  @Test("A function that goes takes what it did not answer with it")
  func removal() throws {
    let (guest, port, _) = try started()
    #expect(!guest.submitAndWait(Self.whole))
    port.connect(nil)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 1)
    #expect(guest.submitAndWait(Self.whole))
    #expect(status(guest) == 0)
  }

  @Test("A queue that was disabled meanwhile hears nothing of its wait; a reset forgets all")
  func disabled() throws {
    let (guest, port, _) = try started()
    #expect(!guest.submitAndWait(Self.whole))
    let status = guest.statusPage
    guest.command(clear: 26)
    port.completeInvalidations(1)
    #expect(guest.memory.loadUInt32(at: status) == 0)
    guest.enableQueue(wide: true)
    #expect(guest.submitAndWait([2 | 1 << 4, 0]))

    #expect(!guest.submitAndWait(Self.whole))
    guest.unit.reset()
    timer.fire()
    timer.fire()
    #expect(self.status(guest) == 0)
  }
}
