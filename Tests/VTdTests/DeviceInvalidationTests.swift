import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import VTd

/// Device-TLB invalidations and their completions (VT-d 6.5.2.5, 6.5.2.6, 6.5.2.10, 6.5.2.11).
@Suite("device-TLB invalidations", .timeLimit(.minutes(5)))
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

  @Test("a function receives each invalidation, and one that completes at once does not delay the wait")
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

  @Test("a wait descriptor is parked until the function completes, and the vCPU continues")
  func later() throws {
    let (guest, port, cache) = try started()
    #expect(!guest.submitAndWait(Self.whole, Self.whole))
    #expect(guest.read64(0x80) == guest.read64(0x88), "all descriptors are fetched")
    #expect(timer.isRunning)
    // Descriptors after the wait are parked, too.
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

  @Test("completions from another thread complete the wait each time")
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

  @Test("a timeout sets ITE, aborts the wait and stops the queue until software clears ITE")
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
    // The queue does not fetch.
    cache.answerAtOnce(true)
    #expect(!guest.submitAndWait(Self.whole))
    #expect(cache.invalidations.count == 1)
    guest.write32(0x34, 0x40)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 2)
    #expect(guest.read64(0x80) == guest.read64(0x88))
    // The completion comes too late: no invalidation waits for it.
    port.completeInvalidations(1)
    #expect(status(guest) == 0x20)
    #expect(guest.read64(0xb0)[bits: 48...63] == 0x18)
    // ICE does not stop the queue.
    #expect(guest.submitAndWait(Self.whole))
    guest.write32(0x34, 0x20)
    #expect(status(guest) == 0)
  }

  @Test("the error record keeps the first source until software clears the error")
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

    // Two functions do not complete in time.
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

  @Test("a completion with a wrong tag or from another function sets ICE, and the correct one is still accepted")
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

  @Test("on a unit without a timer, an invalidation that the device does not complete immediately times out")
  func noTimer() throws {
    let (guest, _, _) = try started(timed: false)
    #expect(!guest.submitAndWait(Self.whole))
    #expect(status(guest) == 0x40)
  }

  @Test("invalidations beyond the number of tags are sent as completions arrive")
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

  @Test("removing a function completes its outstanding invalidations")
  func removal() throws {
    let (guest, port, _) = try started()
    #expect(!guest.submitAndWait(Self.whole))
    port.connect(nil)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 1)
    #expect(guest.submitAndWait(Self.whole))
    #expect(status(guest) == 0)
  }

  @Test("disabling the queue drops its wait, and a reset drops everything")
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
