import VTdOracle

/// Compares the unit with the independent walker: on random tables of every type that do not change and, for two fifths
/// of the accesses, on tables that change while caches are invalidated.
/// - Parameters:
///   - accesses: the total number.
///   - seed: The seed of the first tables. Each further set of tables has the next seed.
/// - Returns: the first difference; nil if there is none.
func compareWithOracle(accesses: Int, seed: UInt64) throws -> Comparison.Difference? {
  let inSequences = accesses * 2 / 5
  if let difference = try compareSequences(accesses: inSequences, seed: seed) { return difference }
  return try compareTables(accesses: accesses - inSequences, seed: seed)
}

private func compareTables(accesses: Int, seed: UInt64) throws -> Comparison.Difference? {
  let accessesOfTables = 5000
  var done = 0
  var passed = 0
  var reasons: Set<UInt8> = []
  var tables: UInt64 = 0
  while done < accesses {
    for subject in Comparison.Subject.allCases {
      let count = min(accessesOfTables, accesses - done)
      if count == 0 { break }
      let result = try Comparison.run(subject, seed: seed &+ tables, accesses: count)
      tables += 1
      done += result.accesses
      passed += result.verdicts[0, default: 0]
      reasons.formUnion(result.verdicts.keys.filter { $0 != 0 })
      if let difference = result.difference { return difference }
    }
  }
  print(
    "\(done) accesses through \(tables) random tables, \(passed) passed, \(reasons.count) fault reasons met: no difference"
  )
  return nil
}

private func compareSequences(accesses: Int, seed: UInt64) throws -> Comparison.Difference? {
  let accessesOfSequence = 5000
  var done = 0
  var passed = 0
  var stale = 0
  var invalidations = 0
  var sequences: UInt64 = 0
  while done < accesses {
    for mode in InvalidationSequence<RandomChoices>.Mode.allCases {
      let count = min(accessesOfSequence, accesses - done)
      if count == 0 { break }
      let result = try InvalidationSequence<RandomChoices>.run(mode, seed: seed &+ sequences, accesses: count)
      sequences += 1
      done += result.accesses
      passed += result.passed
      stale += result.staleAnswers
      invalidations += result.invalidations
      if let difference = result.difference { return difference }
    }
  }
  print(
    """
    \(done) accesses in \(sequences) random sequences with \(invalidations) invalidations, \(passed) passed, \
    \(stale) answered from stale caches: no difference
    """)
  return nil
}
