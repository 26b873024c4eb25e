import Glibc
import Linux
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

  /// A kernel that records which eventfd each doorbell signals.
  private final class RecordingDoorbells: Doorbells {
    let attached = Mutex<[UInt64: Int32]>([:])

    func attach(_ event: Int32, toDoorbell address: UInt64) -> Bool {
      attached.withLock { $0[address] = event }
      return true
    }

    func detach(_ event: Int32, fromDoorbell address: UInt64) {
      attached.withLock { if $0[address] == event { $0[address] = nil } }
    }

    subscript(_ address: UInt64) -> Int32? { attached.withLock { $0[address] } }
  }

  private static func signal(_ event: Int32) throws {
    try FileDescriptor(duplicating: event).write([1, 0, 0, 0, 0, 0, 0, 0])
  }

  private static func isSignalled(_ event: Int32) -> Bool { Poll.readable([event], milliseconds: 0)[0] }

  @Test func `while a queue is lent, its doorbell signals the other server, whose calls run the handler`() throws {
    let doorbells = RecordingDoorbells()
    let served = SharedInteger()
    let worker = try EventWorker(name: "queue", doorbells: doorbells) { served.increment() }
    worker.setDoorbell(at: 0x1000)
    #expect(eventually { doorbells[0x1000] != nil })
    let own = doorbells[0x1000]
    let notifiers = try #require(worker.lend())
    #expect(eventually { doorbells[0x1000] == notifiers.kick.descriptor })
    #expect(notifiers.call.descriptor == own)
    worker.wake()
    #expect(Self.isSignalled(notifiers.kick.descriptor))
    let before = served.value
    try Self.signal(notifiers.call.descriptor)
    #expect(eventually { served.value > before })
    // The worker leaves the other server's notifications alone.
    #expect(Self.isSignalled(notifiers.kick.descriptor))
    worker.setDoorbell(at: 0x2000)
    #expect(eventually { doorbells[0x2000] == notifiers.kick.descriptor } && doorbells[0x1000] == nil)

    let lent = served.value
    worker.reclaim()
    #expect(eventually { doorbells[0x2000] == own && served.value > lent })
    let reclaimed = served.value
    worker.wake()
    #expect(eventually { served.value > reclaimed })
    worker.stop()
    #expect(doorbells[0x2000] == nil)
  }
}
