import Testing
import VTdOracle

@Suite("The unit against a walker written apart")
struct OracleTests {
  static let seed: UInt64 = .random(in: .min ... .max)

  @Test("Random tables and requests, and what they mark", arguments: Comparison.Subject.allCases)
  func compare(_ subject: Comparison.Subject) throws {
    for round: UInt64 in 0..<3 {
      let seed = Self.seed &+ round
      let result = try Comparison.run(subject, seed: seed, accesses: 6000)
      if let difference = result.difference { Issue.record("\(difference)") }
      // The tables are such that requests pass, and that they meet several faults.
      #expect(result.verdicts[0, default: 0] > result.accesses / 50, "\(subject), seed \(seed): \(result.verdicts)")
      #expect(result.verdicts.count >= 5, "\(subject), seed \(seed): \(result.verdicts)")
    }
  }
}
