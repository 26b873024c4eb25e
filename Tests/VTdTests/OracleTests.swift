import Testing
import VTdOracle

@Suite("the unit against an independent walker")
struct OracleTests {
  static let seed: UInt64 = .random(in: .min ... .max)

  @Test(
    "on random tables, answers and accessed and dirty bits match the walker's", arguments: Comparison.Subject.allCases)
  func compare(_ subject: Comparison.Subject) throws {
    var verdicts: [UInt8: Int] = [:]
    for round: UInt64 in 0..<3 {
      let result = try Comparison.run(subject, seed: Self.seed &+ round, accesses: 6000)
      if let difference = result.difference { Issue.record("\(difference)") }
      verdicts.merge(result.verdicts, uniquingKeysWith: +)
    }
    // Some requests must pass, and several kinds of fault must occur. How many depends on the seed: a fault near the
    // root of one round's tables leaves few.
    #expect(verdicts[0, default: 0] > 0, "\(subject), seed \(Self.seed): \(verdicts)")
    #expect(verdicts.count >= 5, "\(subject), seed \(Self.seed): \(verdicts)")
  }

  /// With this seed, request 127 marks an entry of the root table as accessed, because a first-stage table is there.
  @Test("the comparison holds when the random tables lead to the root table")
  func tablesThatLeadToTheRootTable() throws {
    let result = try Comparison.run(.nested3, seed: 9_200_725_406_411_103_614, accesses: 1000)
    #expect(result.difference == nil)
  }

  @Test(
    "after random invalidations each answer is from the tables or one that a cache may still hold",
    arguments: InvalidationSequence<RandomChoices>.Mode.allCases)
  func sequences(_ mode: InvalidationSequence<RandomChoices>.Mode) throws {
    var passed = 0
    var stale = 0
    var interrupts = (delivered: 0, stale: 0)
    var remoteAccesses = 0
    for round: UInt64 in 0..<4 {
      let result = try InvalidationSequence<RandomChoices>.run(mode, seed: Self.seed &+ round, accesses: 4000)
      if let difference = result.difference { Issue.record("\(difference)") }
      passed += result.passed
      stale += result.staleAnswers
      remoteAccesses += result.remoteAccesses
      interrupts.delivered += result.deliveredInterrupts
      interrupts.stale += result.staleInterrupts
    }
    // Some answers must come from the caches, and some from the tables.
    #expect(remoteAccesses > 0)
    #expect(passed > 0 && stale > 0, "seed \(Self.seed): \(passed) passed, \(stale) stale")
    #expect(interrupts.delivered > 0 && interrupts.stale > 0, "seed \(Self.seed): of interrupts \(interrupts)")
  }
}
