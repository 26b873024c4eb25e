import Synchronization
import TestSupport
import Testing

@testable import Machine

/// Tests the thread that serves a queue, and its doorbell in the kernel.
@Suite struct EventWorkerTests {
  /// A kernel that attaches a doorbell once the test opens its gate.
  private final class SlowDoorbells: Doorbells {
    let gate = SharedInteger()
    let attached = Mutex<Set<UInt64>>([])
    let asked = SharedInteger()

    func attach(_ event: Int32, toDoorbell address: UInt64) -> Bool {
      asked.increment()
      guard eventually({ gate.value > 0 }) else { return false }
      return attached.withLock { $0.insert(address).inserted }
    }

    func detach(_ event: Int32, fromDoorbell address: UInt64) { attached.withLock { _ = $0.remove(address) } }

    var all: Set<UInt64> { attached.withLock { $0 } }
  }

  @Test func `a doorbell is attached without delaying the CPU that places it, and detached at once`() throws {
    let doorbells = SlowDoorbells()
    let served = SharedInteger()
    let worker = try EventWorker(name: "queue", doorbells: doorbells) { served.increment() }
    worker.setDoorbell(at: 0x1000)
    #expect(eventually { doorbells.asked.value == 1 } && doorbells.all == [])
    doorbells.gate.increment()
    #expect(eventually { doorbells.all == [0x1000] })
    worker.setDoorbell(at: nil)
    #expect(doorbells.all == [])
    worker.setDoorbell(at: 0x2000)
    #expect(eventually { doorbells.all == [0x2000] })
    // The old address is free as soon as the new one is set.
    worker.setDoorbell(at: 0x3000)
    #expect(!doorbells.all.contains(0x2000))
    #expect(eventually { doorbells.all == [0x3000] })
    let before = served.value
    worker.wake()
    #expect(eventually { served.value > before })
    worker.stop()
    #expect(doorbells.all == [])
  }

  @Test func `a doorbell that the kernel refuses is tried once at each address`() throws {
    let doorbells = SlowDoorbells()
    doorbells.gate.increment()
    doorbells.attached.withLock { $0 = [0x1000] }
    let served = SharedInteger()
    let worker = try EventWorker(name: "queue", doorbells: doorbells) { served.increment() }
    worker.setDoorbell(at: 0x1000)
    #expect(eventually { doorbells.asked.value == 1 })
    for round in 1...5 {
      let before = served.value
      worker.wake()
      #expect(eventually { served.value > before }, "round \(round)")
    }
    #expect(doorbells.asked.value == 1)
    worker.setDoorbell(at: 0x2000)
    #expect(eventually { doorbells.all == [0x1000, 0x2000] })
    worker.stop()
    // The worker does not detach a doorbell that it never had.
    #expect(doorbells.all == [0x1000])
  }
}
