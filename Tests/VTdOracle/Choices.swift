/// The source of a comparison's decisions: a seeded generator or a fuzzer's bytes.
package protocol Choices {
  /// Whether the comparison should stop.
  var isAtEnd: Bool { get }
  /// Returns one of `count` choices; `count` is at most 256.
  mutating func choice(_ count: UInt64) -> UInt64
  mutating func bits() -> UInt64
}

/// Endless random choices.
package struct RandomChoices: Choices {
  private var random: SeededGenerator
  package init(seed: UInt64) { random = SeededGenerator(seed: seed) }
  package var isAtEnd: Bool { false }
  package mutating func choice(_ count: UInt64) -> UInt64 { random.next() % count }
  package mutating func bits() -> UInt64 { random.next() }
}

extension Choices {
  mutating func pick<Element>(_ list: [Element]) -> Element { list[Int(choice(UInt64(list.count)))] }
  /// Returns true for one of `count` choices.
  mutating func rarely(_ count: UInt64) -> Bool { choice(count) == 1 }
}
