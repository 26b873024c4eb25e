import CWalker
import Hardware
import Synchronization

/// One row of the table: an operation of the unit and of the C walker, on one thread and on two.
struct Measurement {
  let name: String
  /// Samples by number of threads minus one.
  var unit: [[Sample]] = [[], []]
  var c: [[Sample]] = [[], []]

  init(_ name: String) { self.name = name }

  /// Returns the median nanoseconds of an operation.
  func unitTime(threads: Int) -> Double { median(unit[threads - 1].map(\.nanoseconds)) }
  func cTime(threads: Int) -> Double { median(c[threads - 1].map(\.nanoseconds)) }
}

extension Subject {
  /// Measures translations of all `addresses`, repeated, by the two devices' ports.
  /// - Parameter cached: whether every request must hit in the IOTLB. If not, at most one in fifty may hit.
  func translations(
    _ name: String, _ addresses: [UInt64], cached: Bool, passes: Int, rounds: Int
  ) throws -> Measurement {
    let operations = addresses.count * passes
    let inUnit: @Sendable (Int) throws -> UInt64 = { [ports] in
      try translateAll(ports[$0], addresses, rounds: passes)
    }
    let inC: @Sendable (Int) throws -> UInt64 = { [self] in
      let sum = cw_translate_all(cPorts[$0], addresses, addresses.count, passes)
      if sum == .max { throw BenchmarkError("the C walker refused a request") }
      return sum
    }
    // The first pass fills the caches, or shows that they are too small.
    for number in 0...1 {
      _ = try translateAll(ports[number], addresses, rounds: 1)
      _ = cw_translate_all(cPorts[number], addresses, addresses.count, 1)
    }
    let before = guest.unit.counters
    let hitsBefore = cHits
    var result = Measurement(name)
    for _ in 0..<rounds {
      for threads in 1...2 {
        let unit = try measure(threads: threads, operations: operations, inUnit)
        let c = try measure(threads: threads, operations: operations, inC)
        guard unit.sum == c.sum else { throw BenchmarkError("\(name): the unit and the C walker differ") }
        result.unit[threads - 1].append(unit)
        result.c[threads - 1].append(c)
      }
    }
    let requests = UInt64(3 * operations * rounds)
    let hits = guest.unit.counters[.iotlbHits] - before[.iotlbHits]
    guard cached ? hits == requests : hits < requests / 50 else {
      throw BenchmarkError("\(name): \(hits) of \(requests) requests were hits")
    }
    guard cHits - hitsBefore == hits else {
      throw BenchmarkError("\(name): \(hits) hits in the unit, \(cHits - hitsBefore) in C")
    }
    return result
  }

  private var cHits: UInt64 { cPorts.reduce(0) { $0 + cw_hits($1) } }

  /// Measures invalidations through the queue: by one thread alone, and while another thread's requests hit on the
  /// second device's port.
  func invalidations(_ name: String, batches: Int, rounds: Int) throws -> Measurement {
    let operations = batches * Self.batch
    var result = Measurement(name)
    for _ in 0..<rounds {
      result.unit[0].append(
        try measure(threads: 1, operations: operations) { [self] _ in
          try invalidate(batches: batches)
          return 0
        })
      result.c[0].append(
        try measure(threads: 1, operations: operations) { [self] _ in
          try invalidateInC(batches: batches)
          return 0
        })
      result.unit[1].append(
        try beside({ [self] in _ = try translateAll(ports[1], fewPages, rounds: 16) }) { [self] in
          try measure(threads: 1, operations: operations) { _ in
            try self.invalidate(batches: batches)
            return 0
          }
        })
      result.c[1].append(
        try beside({ [self] in _ = cw_translate_all(cPorts[1], fewPages, fewPages.count, 16) }) { [self] in
          try measure(threads: 1, operations: operations) { _ in
            try self.invalidateInC(batches: batches)
            return 0
          }
        })
    }
    return result
  }
}
