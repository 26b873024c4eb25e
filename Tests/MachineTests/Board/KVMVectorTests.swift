import Glibc
import Hardware
import KVM
import Linux
import Synchronization
import TestSupport
import Testing

@testable import Machine

/// A vector whose eventfd others signal, as VFIO does, over a table of routes that may be full.
@Suite struct KVMVectorTests {
  /// The kernel's table: full when told to be. Signals of an attached eventfd stay in it.
  private final class Table: VectorTable {
    let isFull = Mutex(false)
    let changes = Mutex(0)
    let attached = Mutex<[Int32]>([])

    func allocate() -> UInt32 { 24 }
    func free(_ gsi: UInt32) {}
    func set(_ gsi: UInt32, address: UInt64, data: UInt32) throws(KVMError) {
      changes.withLock { $0 += 1 }
      if isFull.withLock({ $0 }) { throw .call(SystemError("KVM_SET_GSI_ROUTING", code: EINVAL)) }
    }
    func attach(_ event: Int32, to gsi: UInt32) throws(KVMError) { attached.withLock { $0.append(event) } }
    func detach(_ event: Int32, from gsi: UInt32) throws(KVMError) {
      attached.withLock { $0.removeAll { $0 == event } }
    }
  }

  private let table = Table()
  private let sent = Notes<UInt32>()
  private let relay: InterruptRelay

  init() {
    let sent = sent
    relay = InterruptRelay { sent.add($0.data) }
  }

  private func message(_ data: UInt32) -> InterruptMessage { InterruptMessage(address: 0xfee0_0000, data: data) }

  /// What VFIO does.
  private func signal(_ event: Int32) throws {
    try FileDescriptor(duplicating: event).write([1, 0, 0, 0, 0, 0, 0, 0])
  }

  private func isPending(_ event: Int32) -> Bool { Poll.readable([event], milliseconds: 0)[0] }

  @Test("a vector that only this process signals needs no route in the kernel's table") func noRoute() throws {
    let vector = KVMVector(table: table, relay: relay)
    vector.signal()
    for data in 1...3 as ClosedRange<UInt32> {
      vector.set(message(data))
      vector.signal()
    }
    #expect(sent.all == [1, 2, 3])
    #expect(table.changes.withLock { $0 } == 0 && table.attached.withLock { $0 }.isEmpty)
    vector.hold()
    vector.signal()
    #expect(sent.all == [1, 2, 3])
  }

  @Test("an eventfd asked for after the message was set sends it") func anEventfdAskedForLate() throws {
    let vector = KVMVector(table: table, relay: relay)
    vector.set(message(1))
    let event = try #require(vector.event)
    #expect(table.changes.withLock { $0 } == 1 && table.attached.withLock { $0 } == [event])
  }

  @Test("with the kernel's table full, a signal of others sends the message all the same") func aFullTable() throws {
    let vector = KVMVector(table: table, relay: relay)
    let event = try #require(vector.event)
    vector.set(message(1))
    #expect(table.attached.withLock { $0 } == [event])
    table.isFull.withLock { $0 = true }
    vector.set(message(2))
    #expect(table.attached.withLock { $0 } == [])
    try signal(event)
    #expect(eventually { sent.all == [2] })
    vector.set(message(3))
    try signal(event)
    #expect(eventually { sent.all == [2, 3] })
    vector.signal()
    #expect(sent.all == [2, 3, 3])
  }

  @Test("held, signals add up; they are sent with the next message") func held() throws {
    table.isFull.withLock { $0 = true }
    let vector = KVMVector(table: table, relay: relay)
    vector.set(message(1))
    let event = try #require(vector.event)
    vector.hold()
    try signal(event)
    try signal(event)
    usleep(20_000)
    #expect(isPending(event) && sent.all == [])
    vector.set(message(2))
    #expect(eventually { sent.all == [2] })
  }

  @Test("with room in the table again, the kernel has the eventfd and the relay has not") func roomAgain() throws {
    table.isFull.withLock { $0 = true }
    let vector = KVMVector(table: table, relay: relay)
    let event = try #require(vector.event)
    vector.set(message(1))
    try signal(event)
    #expect(eventually { sent.all == [1] })
    table.isFull.withLock { $0 = false }
    vector.set(message(2))
    #expect(table.attached.withLock { $0 } == [event])
    try signal(event)
    usleep(20_000)
    #expect(isPending(event) && sent.all == [1])
  }

  @Test("the kernel's own table, filled up", .enabled(if: APICGuest.isPossible)) func aRealTable() throws {
    let guest = try APICGuest()
    // KVM_MAX_IRQ_ROUTES: GSIs from 4096 on have no route.
    while guest.machine.routing.allocate() < 4095 {}
    let vector = KVMLocalInterrupts(guest.machine).makeVector()
    let event = try #require(vector.event)
    vector.set(message(0x45))
    try signal(event)
    #expect(try eventually { try guest.requests() == [0x45] })
  }
}
