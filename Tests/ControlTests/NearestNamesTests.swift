import Testing

@testable import Control

@Suite struct NearestNamesTests {
  @Test(
    "the distance counts insertions, deletions, replacements and swaps",
    arguments: [
      ("", "", 0), ("abc", "abc", 0), ("abc", "abd", 1), ("abc", "ab", 1), ("abc", "abcd", 1), ("abc", "acb", 1),
      ("", "abc", 3), ("kitten", "sitting", 3), ("ca", "abc", 3),
    ])
  func distances(_ a: String, _ b: String, _ expected: Int) {
    #expect(NearestNames.distance(Array(a.utf8), Array(b.utf8)) == expected)
    #expect(NearestNames.distance(Array(b.utf8), Array(a.utf8)) == expected)
  }

  @Test("the nearest names come first")
  func theNearestComeFirst() {
    let names = ["caching-mode", "scalable-mode", "x-scalable-mode", "device-iotlb"]
    #expect(NearestNames.to("scalable_mode", among: names) == ["scalable-mode", "x-scalable-mode"])
    #expect(NearestNames.to("cach", among: names) == ["caching-mode"])
  }

  @Test("distant names are still offered, three at most")
  func nothingNearIsStillAnAnswer() {
    #expect(NearestNames.to("qqqqqqqq", among: ["one", "two", "three", "four"]).count == 3)
    #expect(NearestNames.to("q", among: []).isEmpty)
  }
}
