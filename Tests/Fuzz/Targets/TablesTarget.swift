import VTdOracle

// Translation structures of every mode change entry by entry, while several functions make requests with and without
// PASID. Each answer is compared with the walker and cache model of Tests/VTdOracle, so this target finds wrong answers
// as well as traps.

extension FuzzTarget {
  static let tables = FuzzTarget("tables") { input throws(Finding) in
    let mode = InvalidationSequence<FuzzChoices>.Mode.allCases[input.choice(4)]
    let seed = UInt64(input.byte())
    if try difference(mode, seed, input, keepsTrail: false) != nil,
      // Run the input again to record the steps before the difference.
      let difference = try difference(mode, seed, input, keepsTrail: true)
    {
      throw difference
    }
  }
}

private func difference(
  _ mode: InvalidationSequence<FuzzChoices>.Mode, _ seed: UInt64, _ input: FuzzInput, keepsTrail: Bool
) throws(Finding) -> Finding? {
  do {
    var sequence = try InvalidationSequence(
      mode, choices: FuzzChoices(input), pagesSeed: seed, label: "pages of seed \(seed)", keepsTrail: keepsTrail)
    sequence.run(accesses: 1000)
    return sequence.difference.map { Finding(text: $0.description) }
  } catch {
    throw Finding(text: "\(error)")
  }
}

/// Decides a sequence's steps by the bytes of an input.
struct FuzzChoices: Choices {
  private var input: FuzzInput

  init(_ input: FuzzInput) { self.input = input }

  var isAtEnd: Bool { input.isEmpty }
  mutating func choice(_ count: UInt64) -> UInt64 { UInt64(input.byte()) % count }
  mutating func bits() -> UInt64 { input.little(2) }
}
