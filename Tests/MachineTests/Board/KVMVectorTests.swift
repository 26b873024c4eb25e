import Glibc
import Hardware
import KVM
import Linux
import Synchronization
import TestSupport
import Testing

@testable import Machine

/// Tests an interrupt vector whose eventfd is signalled from outside, as VFIO does. The kernel's routing table can be
/// full.
@Suite struct KVMVectorTests {
  /// Stands in for the kernel's routing table, and can be made full. Signals of an attached eventfd stay in the
  /// eventfd.
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

  init() throws {
    let sent = sent
    relay = InterruptRelay(on: try EventLoop(name: "relay test")) { sent.add($0.data) }
  }

  private func message(_ data: UInt32) -> InterruptMessage { InterruptMessage(address: 0xfee0_0000, data: data) }

  /// Signals the eventfd as VFIO does.
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

  @Test("an eventfd requested after the message was set sends that message")
  func anEventfdAskedForLate() throws {
    let vector = KVMVector(table: table, relay: relay)
    vector.set(message(1))
    let event = try #require(vector.event)
    #expect(table.changes.withLock { $0 } == 1 && table.attached.withLock { $0 } == [event])
  }

  @Test("if KVM's routing table is full, a signal of the vector's eventfd still sends the interrupt message")
  func aFullTable() throws {
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

  @Test("signals of a held vector are kept, and sent as one when the next message is set")
  func held() throws {
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

  @Test("once the table has room again, the kernel handles the eventfd instead of the relay")
  func roomAgain() throws {
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

  @Test("a vector sends its message although the kernel's own table is full", .enabled(if: APICGuest.isPossible))
  func aRealTable() throws {
    let guest = try APICGuest()
    // KVM_MAX_IRQ_ROUTES: GSIs from 4096 on have no route.
    while guest.machine.routing.allocate() < 4095 {}
    let vector = KVMLocalInterrupts(guest.machine, try EventLoop(name: "relay test")).makeVector()
    let event = try #require(vector.event)
    vector.set(message(0x45))
    try signal(event)
    #expect(try eventually { try guest.requests() == [0x45] })
  }

  @Test func `signals that arrive while a vector is held are pending until it has a message again`() throws {
    let vector = KVMVector(table: table, relay: relay)
    let event = try #require(vector.event)
    vector.set(message(1))
    #expect(!vector.hasPendingSignal)
    vector.hold()
    #expect(!vector.hasPendingSignal)
    try signal(event)
    #expect(vector.hasPendingSignal)
    vector.set(message(1))
    #expect(!vector.hasPendingSignal)
  }
}
