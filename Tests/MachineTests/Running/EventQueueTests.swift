import Linux
import Synchronization
import Testing

@testable import Machine

@Suite struct EventQueueTests {
  /// Whether the descriptor says that there is something.
  private func isReadable(_ queue: EventQueue) -> Bool { Poll.readable([queue.rawValue], milliseconds: 0)[0] }

  @Test func theFirstOfSeveralDecides() throws {
    let queue = try EventQueue()
    #expect(queue.take() == nil)
    queue.post(.debugExit(status: 7))
    queue.post(.shutdown)
    queue.post(.reset)
    #expect(queue.take() == .debugExit(status: 7))
    #expect(queue.take() == nil)
    #expect(!isReadable(queue))
    queue.post(.reset)
    #expect(queue.take() == .reset)
  }

  @Test func requestsAreKeptInOrder() throws {
    let queue = try EventQueue()
    for event in [.pause, .reset, .hostReset, .shutdown, .resume] as [MachineEvent] { queue.post(event) }
    #expect(queue.take() == .pause)
    #expect(isReadable(queue))
    // The guest's reset takes what the guest did after it along.
    #expect(queue.take() == .reset)
    #expect(queue.take() == .hostReset)
    #expect(isReadable(queue))
    #expect(queue.take() == .resume)
    #expect(!isReadable(queue))
    #expect(queue.take() == nil)
  }

  @Test func aWishToEndGoesFirst() throws {
    let queue = try EventQueue()
    for event in [.shutdown, .hostReset, .quit(.terminal), .quit(.monitorQuit)] as [MachineEvent] { queue.post(event) }
    #expect(queue.take() == .quit(.terminal))
    #expect(queue.take() == nil)
  }

  @Test func whatTheGuestDidIsForgotten() throws {
    let queue = try EventQueue()
    queue.post(.shutdown)
    queue.post(.pause)
    queue.post(.reset)
    #expect(queue.forgetGuestEvents() == nil)
    #expect(queue.take() == .pause)
    #expect(queue.take() == nil)
    queue.post(.reset)
    queue.post(.quit(.signal))
    #expect(queue.forgetGuestEvents() == .quit(.signal))
    #expect(queue.take() == nil)
  }

  @Test func thePosterHalts() throws {
    let queue = try EventQueue()
    let halts = Atomic<Int>(0)
    queue.onPost { halts.add(1, ordering: .relaxed) }
    queue.post(.reset)
    queue.post(.pause)
    #expect(halts.load(ordering: .relaxed) == 2)
    queue.onPost(nil)
    queue.post(.shutdown)
    #expect(halts.load(ordering: .relaxed) == 2)
  }
}
