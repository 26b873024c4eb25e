/// What decides the steps of a comparison: a seeded generator, or a fuzzer's bytes.
package protocol Choices {
  /// No more steps are wanted.
  var isAtEnd: Bool { get }
  /// - Returns: one of `count` choices, `count` being at most 256.
  mutating func choice(_ count: UInt64) -> UInt64
  mutating func bits() -> UInt64
}

/// Choices without end.
package struct RandomChoices: Choices {
  private var random: SeededGenerator
  package init(seed: UInt64) { random = SeededGenerator(seed: seed) }
  package var isAtEnd: Bool { false }
  package mutating func choice(_ count: UInt64) -> UInt64 { random.next() % count }
  package mutating func bits() -> UInt64 { random.next() }
}

extension Choices {
  mutating func pick<Element>(_ list: [Element]) -> Element { list[Int(choice(UInt64(list.count)))] }
  /// Once in `count` times.
  mutating func rarely(_ count: UInt64) -> Bool { choice(count) == 1 }
}
