import Hardware
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(5))) struct RequestsInFlightTests {
  @Test("a drain without requests returns at once") func nothingInFlightIsNotWaitedFor() {
    let requests = RequestsInFlight()
    let parking = SemaphoreParking()
    for _ in 0..<5 {
      requests.drain(parking: parking)
      requests.end(requests.begin())
      RequestInFlight(requests).end()
      do { _ = RequestInFlight(requests) }
    }
  }

  /// A request that begins during a drain belongs to the next drain, however many drains there were before.
  @Test("a drain waits only for requests that began before it") func aDrainWaitsForWhatBeganBefore() {
    let requests = RequestsInFlight()
    var held = requests.begin()
    for _ in 0..<8 {
      let parking = SemaphoreParking()
      let drained = SharedInteger()
      withThread {
        requests.drain(parking: parking)
        drained.value = 1
      } while: {
        parking.waitForSleeper()
        #expect(drained.value == 0)
        let later = requests.begin()
        requests.end(requests.begin())
        requests.end(held)
        held = later
      }
      #expect(drained.value == 1)
    }
    requests.end(held)
  }

  /// It is not enough that one of several requests ends.
  @Test("a drain waits for all requests") func aDrainWaitsForAll() {
    let requests = RequestsInFlight()
    let parking = SemaphoreParking()
    let held = (0..<100).map { _ in requests.begin() }
    let ended = SharedInteger()
    withThread {
      requests.drain(parking: parking)
      #expect(ended.value == 100)
    } while: {
      parking.waitForSleeper()
      for phase in held {
        ended.increment()
        requests.end(phase)
      }
    }
  }

  /// Three threads begin and end requests without a pause; another one checks that no request outlives a drain.
  @Test("no request outlives a drain that began after it, with many threads") func manyThreads() {
    let requests = RequestsInFlight()
    let parking = SemaphoreParking()
    // The number that requests may use now. While a request is in flight, its slot holds the number that it uses.
    let current = SharedInteger()
    let stop = SharedInteger()
    let uses = (0..<3).map { _ in SharedInteger(-1) }
    let threads = uses.map { slot in
      TestThread {
        while stop.value == 0 {
          let request = RequestInFlight(requests)
          slot.value = current.value
          slot.value = -1
          request.end()
        }
      }
    }
    for round in 1...20_000 {
      current.value = round
      requests.drain(parking: parking)
      for slot in uses {
        let used = slot.value
        #expect(used == -1 || used == round)
      }
    }
    stop.value = 1
    for thread in threads { thread.join() }
  }

  /// Runs `body` on another thread and `other` on this one, and returns when both are done.
  private func withThread(_ body: @escaping @Sendable () -> Void, while other: () -> Void) {
    let thread = TestThread(body)
    other()
    thread.join()
  }
}
