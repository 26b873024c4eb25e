import Hardware
import TestSupport
import Testing
import VhostSupport

/// Takes pages from the kernel's vhost-net while it moves frames. After the wait descriptor of the invalidation, the
/// kernel must not access the page: the guest may have put a secret there. Runs only where the process may use
/// /dev/vhost-net and create interfaces, as in the lab.
@Suite(.serialized, .timeLimit(.minutes(2)), .enabled(if: TapWire.canUseVhost, "no right to use /dev/vhost-net"))
struct VhostUnmapTests {
  private static let rounds = 50
  /// In the lab, the rounds take about two seconds. A slow machine makes fewer, but at least `fewestRounds`.
  private static let limit = Duration.seconds(4)
  private static let fewestRounds = 10

  @Test(arguments: TranslatedTap.Tables.allCases)
  func `after the wait, a page that was unmapped under traffic is never sent, and its use is a fault`(
    _ tables: TranslatedTap.Tables
  ) throws {
    try unmapUnderTraffic(tables, .transmit)
  }

  @Test(arguments: TranslatedTap.Tables.allCases)
  func `after the wait, no frame is written to a page that was unmapped under traffic, and its use is a fault`(
    _ tables: TranslatedTap.Tables
  ) throws {
    try unmapUnderTraffic(tables, .receive)
  }

  private func unmapUnderTraffic(_ tables: TranslatedTap.Tables, _ direction: TapTraffic.Direction) throws {
    let tap = try TranslatedTap(tables)
    let traffic = TapTraffic(direction, over: tap)
    defer {
      traffic.end()
      tap.close()
    }
    let start = ContinuousClock.now
    var rounds = 0
    while rounds < Self.rounds, rounds < Self.fewestRounds || ContinuousClock.now < start + Self.limit {
      try unmapOne(UInt16(rounds * 7) % TestRing.size, inUse: rounds % 2 == 1, tap, traffic)
      rounds += 1
    }
    #expect(traffic.frames >= rounds)
  }

  /// Unmaps the page of a buffer, reuses the page for a secret, and makes it available as a buffer all the same.
  /// - Parameter inUse: whether the kernel has the buffer at the moment.
  private func unmapOne(_ index: UInt16, inUse: Bool, _ tap: TranslatedTap, _ traffic: TapTraffic) throws {
    try tap.start()
    traffic.start()
    // Now the kernel has the translation.
    try #require(eventually { traffic.completions(of: index) > 0 })
    if inUse {
      traffic.makeAvailable(index)
    } else {
      traffic.withhold(index)
      try #require(eventually { !traffic.isAvailable(index) })
    }
    let page = traffic.ring.buffer(index)
    try #require(tap.takeFault() == nil && tap.failures == 0)

    tap.setMapped(page, false)
    #expect(tap.invalidate(page), "the wait descriptor is not complete")
    traffic.placeSecret(in: index)

    // The kernel returns the buffer only if it has a translation.
    #expect(eventually { tap.failures > 0 || !traffic.isAvailable(index) || traffic.problem != nil })
    #expect(tap.failures > 0 && traffic.isAvailable(index), "a stale translation")
    traffic.pause()
    tap.setMapped(page, true)
    tap.stop()
    traffic.reset(afterSecretIn: index)
    #expect(traffic.problem == nil)
    let fault = try #require(tap.takeFault())
    #expect(fault.address == tap.deviceAddress(of: page) && fault.source == TranslatedTap.source.rawValue)
    #expect(fault.reason == tap.tables.faultReason(traffic.direction) && fault.pasid == nil)
    #expect(fault.isRead == (traffic.direction == .transmit))
    try #require(tap.takeFault() == nil && traffic.problem == nil)
  }
}
