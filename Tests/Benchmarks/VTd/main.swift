// vtd-bench: measures the VT-d unit's hot paths and those of a plain C walker that does the same checks.
// vtd-bench --oracle COUNT [--seed N]: compares the unit with the walker of Tests/VTdOracle instead.

import Glibc

func fail(_ text: String, status: Int32) -> Never {
  let line = Array("vtd-bench: \(text)\n".utf8)
  _ = write(STDERR_FILENO, line, line.count)
  exit(status)
}

var accesses: Int?
var seed = UInt64.random(in: .min ... .max)
var rounds = 21
var words = CommandLine.arguments.dropFirst()
while let option = words.popFirst() {
  guard let value = words.popFirst() else { fail("'\(option)' needs a number", status: 2) }
  switch option {
  case "--oracle":
    guard let count = Int(value), count > 0 else { fail("'\(value)' is not a count of accesses", status: 2) }
    accesses = count
  case "--seed":
    guard let number = UInt64(value) else { fail("'\(value)' is not a seed", status: 2) }
    seed = number
  case "--rounds":
    guard let number = Int(value), (1...1000).contains(number) else { fail("'\(value)' is not 1 to 1000", status: 2) }
    rounds = number
  default: fail("'\(option)' is none of --oracle, --seed and --rounds", status: 2)
  }
}

do {
  if let accesses {
    print("seed \(seed)")
    if let difference = try compareWithOracle(accesses: accesses, seed: seed) { fail("\(difference)", status: 1) }
  } else {
    let first = try Subject(.firstStage)
    let nested = try Subject(.nested)
    Table.print(
      [
        try first.translations("IOTLB hit", first.fewPages, cached: true, passes: 2000, rounds: rounds),
        try first.translations("4-level first-stage miss", first.everyPage, cached: false, passes: 20, rounds: rounds),
        try nested.translations(
          "nested miss, 4 levels in 4", nested.everyPage, cached: false, passes: 5, rounds: rounds),
      ], rounds: rounds)
    Table.printRates(try first.invalidations("invalidations, millions per second", batches: 500, rounds: rounds))
  }
} catch {
  fail("\(error)", status: 1)
}
