import Linux
import Synchronization
import TestSupport
import Testing

@testable import Machine

@Suite struct EventQueueTests {
  /// Returns whether the descriptor signals an event.
  private func isReadable(_ queue: EventQueue) -> Bool { Poll.readable([queue.rawValue], milliseconds: 0)[0] }

  @Test("of several events of the guest, the first decides")
  func theFirstOfSeveralDecides() throws {
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

  @Test("requests are kept in order")
  func requestsAreKeptInOrder() throws {
    let queue = try EventQueue()
    let pause = MachineEvent.request(PendingRequest(.pause))
    let resume = MachineEvent.request(PendingRequest(.resume))
    for event in [pause, .reset, .hostReset, .shutdown, resume] { queue.post(event) }
    #expect(queue.take() == pause)
    #expect(isReadable(queue))
    // The guest's reset also removes the guest's later events.
    #expect(queue.take() == .reset)
    #expect(queue.take() == .hostReset)
    #expect(isReadable(queue))
    #expect(queue.take() == resume)
    #expect(!isReadable(queue))
    #expect(queue.take() == nil)
  }

  @Test("a request to quit precedes other events, and the first such request decides")
  func aWishToEndGoesFirst() throws {
    let queue = try EventQueue()
    for event in [.shutdown, .hostReset, .quit(.terminal), .quit(.monitorQuit)] as [MachineEvent] { queue.post(event) }
    #expect(queue.take() == .quit(.terminal))
    #expect(queue.take() == nil)
  }

  @Test("the guest's events can be discarded, and requests remain")
  func whatTheGuestDidIsForgotten() throws {
    let queue = try EventQueue()
    let pause = MachineEvent.request(PendingRequest(.pause))
    queue.post(.shutdown)
    queue.post(pause)
    queue.post(.reset)
    #expect(queue.forgetGuestEvents() == nil)
    #expect(queue.take() == pause)
    #expect(queue.take() == nil)
    queue.post(.reset)
    queue.post(.quit(.signal))
    #expect(queue.forgetGuestEvents() == .quit(.signal))
    #expect(queue.take() == nil)
  }

  @Test("posting an event that needs stopped CPUs halts them")
  func thePosterHalts() throws {
    let queue = try EventQueue()
    let halts = Atomic<Int>(0)
    queue.onPost { halts.add(1, ordering: .relaxed) }
    queue.post(.reset)
    queue.post(.request(PendingRequest(.pause)))
    #expect(halts.load(ordering: .relaxed) == 2)
    // This request does not need stopped CPUs.
    queue.post(.request(PendingRequest(.resume)))
    #expect(halts.load(ordering: .relaxed) == 2)
    queue.onPost(nil)
    queue.post(.shutdown)
    #expect(halts.load(ordering: .relaxed) == 2)
  }

  /// Returns a request that records its answer; nil is success.
  private func request(_ answers: Notes<RequestError?>) -> MachineEvent {
    .request(PendingRequest(.pause) { answers.add($0) })
  }

  @Test func `a request that is not handled before the end is answered once, as ended`() throws {
    let queue = try EventQueue()
    let answers = Notes<RequestError?>()
    func ended(_ count: Int) -> Bool {
      answers.all.count == count && answers.all.allSatisfy { if case .ended? = $0 { true } else { false } }
    }
    queue.post(request(answers))
    queue.post(.quit(.signal))
    queue.post(request(answers))
    #expect(queue.take() == .quit(.signal) && ended(2))
    queue.post(request(answers))
    queue.post(.quit(.signal))
    #expect(queue.forgetGuestEvents() == .quit(.signal) && ended(3))
    queue.post(request(answers))
    queue.post(.reset)
    queue.close()
    #expect(queue.take() == nil && ended(4))
    // Nothing reads the queue after it is closed.
    queue.post(request(answers))
    #expect(ended(5))
    queue.close()
    #expect(queue.take() == nil && ended(5))
  }
}
