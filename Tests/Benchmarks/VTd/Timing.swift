import CWalker
import Linux
import Synchronization

/// The result of one run of one or two threads.
struct Sample {
  /// Processor time of a thread per operation, in nanoseconds; other processes do not count.
  var nanoseconds: Double
  /// How often threads blocked (voluntary context switches); 0 if none waited for another.
  var waits: UInt64
  /// Sum of the operations' results, to compare with another implementation.
  var sum: UInt64
}

/// Runs `body` on several threads that start together, and averages over them.
/// - Parameters:
///   - operations: the number per thread.
///   - body: gets the thread's number and returns the sum of its operations' results.
func measure(threads: Int, operations: Int, _ body: @escaping @Sendable (Int) throws -> UInt64) throws -> Sample {
  let gathering = Gathering()
  let running = try (0..<threads).map { number in
    try Thread(name: "device \(number)") {
      gathering.arrived.add(1, ordering: .acquiringAndReleasing)
      while gathering.arrived.load(ordering: .acquiring) < threads {}
      let waits = cw_thread_waits()
      let begun = cw_thread_time()
      let sum = Result { try body(number) }
      let took = cw_thread_time() - begun
      let waited = cw_thread_waits() - waits
      gathering.results.withLock { $0.append((took, waited, sum)) }
    }
  }
  for thread in running { thread.join() }
  var sample = Sample(nanoseconds: 0, waits: 0, sum: 0)
  for (took, waits, sum) in gathering.results.withLock({ $0 }) {
    sample.nanoseconds += Double(took) / Double(operations * threads)
    sample.waits += waits
    sample.sum &+= try sum.get()
  }
  return sample
}

private final class Gathering: Sendable {
  let arrived = Atomic(0)
  let results = Mutex<[(took: UInt64, waits: UInt64, sum: Result<UInt64, any Error>)]>([])
}

func median(_ values: [Double]) -> Double {
  let sorted = values.sorted()
  return sorted.isEmpty ? 0 : sorted[sorted.count / 2]
}

/// Runs `body` while another thread repeats `other`.
func beside(_ other: @escaping @Sendable () throws -> Void, _ body: () throws -> Sample) throws -> Sample {
  let state = Beside()
  let thread = try Thread(name: "other device") {
    do {
      repeat {
        try other()
        state.started.store(true, ordering: .releasing)
      } while !state.stop.load(ordering: .acquiring)
    } catch {
      state.failure.withLock { $0 = error }
      state.started.store(true, ordering: .releasing)
    }
  }
  while !state.started.load(ordering: .acquiring) {}
  let sample = Result { try body() }
  state.stop.store(true, ordering: .releasing)
  thread.join()
  if let failure = state.failure.withLock({ $0 }) { throw failure }
  return try sample.get()
}

private final class Beside: Sendable {
  let started = Atomic(false)
  let stop = Atomic(false)
  let failure = Mutex<(any Error)?>(nil)
}
