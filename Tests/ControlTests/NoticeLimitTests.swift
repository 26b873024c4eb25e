import Testing

@testable import Control

@Suite struct NoticeLimitTests {
  @Test("the limit admits one notice in ten seconds and counts the others")
  func one() {
    var limit = NoticeLimit()
    let second: UInt64 = 1_000_000_000
    #expect(limit.admit(at: 5 * second) == 0)
    for step in 0..<1000 as Range<UInt64> { #expect(limit.admit(at: 5 * second + step) == nil) }
    #expect(limit.admit(at: 15 * second - 1) == nil)
    #expect(limit.admit(at: 15 * second) == 1001)
    #expect(limit.takeOmitted() == 0)
    #expect(limit.admit(at: 16 * second) == nil)
    #expect(limit.takeOmitted() == 1)
    #expect(limit.admit(at: 100 * second) == 0)
  }
}
