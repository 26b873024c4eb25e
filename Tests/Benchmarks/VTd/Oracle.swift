import VTdOracle

/// Compares the unit with the walker written apart, over random tables of every kind.
/// - Parameters:
///   - accesses: at least so many in all.
///   - seed: of the first tables; the next ones' follow it.
/// - Returns: the first difference, or nil for none.
func compareWithOracle(accesses: Int, seed: UInt64) throws -> Comparison.Difference? {
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
