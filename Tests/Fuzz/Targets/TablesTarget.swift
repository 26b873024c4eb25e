import VTdOracle

// Translation structures of every mode, changed entry by entry, and requests of several functions with and without
// PASID, each answer compared with the walker and the caches' model of Tests/VTdOracle. So it finds what is
// answered wrongly, not only what traps.

extension FuzzTarget {
  static let tables = FuzzTarget("tables") { input throws(Finding) in
    let mode = InvalidationSequence<FuzzChoices>.Mode.allCases[input.choice(4)]
    let seed = UInt64(input.byte())
    if try difference(mode, seed, input, keepsTrail: false) != nil,
      // Once more, for the steps that led there.
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

/// The bytes of an input as what decides a sequence's steps.
struct FuzzChoices: Choices {
  private var input: FuzzInput

  init(_ input: FuzzInput) { self.input = input }

  var isAtEnd: Bool { input.isEmpty }
  mutating func choice(_ count: UInt64) -> UInt64 { UInt64(input.byte()) % count }
  mutating func bits() -> UInt64 { input.little(2) }
}
