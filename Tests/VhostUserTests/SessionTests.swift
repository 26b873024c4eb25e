import FakeVhostUser
import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import VhostUser

@Suite("queues in a back end") struct SessionTests {
  private final class Stops: Sendable {
    let indices = Notes<UInt16?>()
  }

  @Test func `a queue starts after features, memory and the inflight region`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    let before = backEnd.log.count
    #expect(test.start(1, start: 5))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    #expect(
      Array(backEnd.numbers[before...]) == [
        .setFeatures, .setMemTable, .getInflightFD, .setInflightFD, .setVringNum, .setVringBase, .setVringAddr,
        .setVringCall, .setVringKick, .setVringEnable,
      ])
    // The bits that the back end has, and the one of the protocol.
    #expect(backEnd.last(.setFeatures)?.value == 1 << 30 | 1 << 32 | 1 << 29 | 1 << 9)
    #expect(backEnd.last(.setVringNum)?.state == VringState(index: 1, number: 128))
    #expect(backEnd.last(.setVringBase)?.state == VringState(index: 1, number: 5))
    #expect(backEnd.last(.setVringKick)?.value == 1 && backEnd.last(.setVringKick)?.descriptors.count == 1)
    #expect(backEnd.last(.setVringEnable)?.state == VringState(index: 1, number: 1))
    let table = try #require(backEnd.last(.setMemTable))
    #expect(table.payload == MemoryRegion.table(MemoryRegion.regions(of: test.memory) ?? []))
    #expect(table.descriptors.count == 1)

    // The back end maps the guest's own RAM.
    let mapping = try Mapping(of: table.descriptors[0].file, size: 1 << 20)
    #expect(test.memory.storeUInt64(0x1122_3344, at: 0x8000))
    #expect((mapping.base + 0x8000).load(as: UInt64.self) == 0x1122_3344)
  }

  @Test func `private RAM has no regions`() throws {
    #expect(MemoryRegion.regions(of: try GuestMemory(size: 1 << 20, lowLimit: 1 << 20)) == nil)
  }

  @Test func `a stop returns the back end's index, and the queue starts again`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    let stops = Stops()
    #expect(test.session.stop(queue: 0) { stops.indices.add($0) } == .pending)
    #expect(eventually { stops.indices.all == [7] })
    let before = backEnd.log.count
    #expect(test.start(0, start: 7))
    #expect(eventually { backEnd.log.count == before + 6 })
    // The session goes on.
    #expect(backEnd.numbers[before] == .setVringNum)
    #expect(backEnd.last(.setVringBase)?.state.number == 7)
  }

  @Test func `a stop before the back end has the queue is immediate`() throws {
    let backEnd = try FakeBackEnd { $0.number == 1 ? .silence : .normal }
    let test = try TestSession([backEnd], reconnects: true)
    #expect(test.start(0, start: 9))
    #expect(test.session.stop(queue: 0) { _ in } == .stopped(9))
    #expect(test.session.stop(queue: 0) { _ in } == .stopped(nil))
  }

  @Test func `other features begin another session after a reset`() throws {
    var abilities = FakeBackEnd.Abilities()
    abilities.protocolFeatures |= 1 << 16
    let backEnd = try FakeBackEnd(abilities)
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    #expect(eventually { backEnd.last(.setStatus)?.value == 0xf })
    _ = test.session.stop(queue: 0) { _ in }
    test.session.reset()
    #expect(eventually { backEnd.last(.setStatus)?.value == 0 })
    let before = backEnd.log.count
    #expect(test.session.start(queue: 0, test.ring(), features: 1 << 32))
    #expect(eventually { backEnd.last(.setStatus)?.value == 0xf })
    #expect(backEnd.last(.setFeatures)?.value == 1 << 30 | 1 << 32)
    // A new region: the old one may describe requests of the time before the reset.
    #expect(backEnd.numbers[before...].contains(.getInflightFD))
  }

  @Test func `the call descriptor can change, and many changes make few messages`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    let (blocked, gate) = (Semaphore(), Semaphore())
    let job = EventLoop.Job(on: test.loop)
    job.onRun {
      blocked.signal()
      gate.wait()
    }
    job.schedule()
    blocked.wait()
    for _ in 0..<1000 { test.session.setCall(SharedDescriptor(test.kick.rawValue, owner: test.kick), queue: 0) }
    test.session.setCall(nil, queue: 0)
    gate.signal()
    // Bit 8: no descriptor.
    #expect(eventually { backEnd.last(.setVringCall)?.value == 0x100 })
    #expect(backEnd.last(.setVringCall)?.descriptors.isEmpty == true)
    // One at the start, and one for all changes.
    #expect(backEnd.log.count { $0.request == .setVringCall } == 2)
  }

  @Test func `a back end that does not stop a queue in time is given up`() throws {
    let backEnd = try FakeBackEnd { $0.request == .getVringBase ? .silence : .normal }
    let test = try TestSession([backEnd], patience: 200_000_000)
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0) && test.start(1))
    #expect(eventually { backEnd.log.count { $0.request == .setVringEnable } == 2 })
    let stops = Stops()
    #expect(test.session.stop(queue: 0) { stops.indices.add($0) } == .pending)
    #expect(eventually { stops.indices.all == [nil] })
    #expect(eventually { test.device.lost.all == [.timeout(.getVringBase)] })
    // The other queue is lost, too, and no further one starts.
    #expect(eventually { test.failures.value == 1 })
    #expect(!test.start(0))
  }

  @Test func `a wrong queue or index in the answer to a stop is an error`() throws {
    for state in [VringState(index: 1, number: 7), VringState(index: 0, number: 0x10000)] {
      let backEnd = try FakeBackEnd {
        $0.request == .getVringBase ? .bytes(FakeBackEnd.message(11, state.bytes), []) : .normal
      }
      let test = try TestSession([backEnd])
      _ = try test.session.waitUntilConnected()
      #expect(test.start(0))
      #expect(eventually { backEnd.last(.setVringEnable) != nil })
      let stops = Stops()
      _ = test.session.stop(queue: 0) { stops.indices.add($0) }
      #expect(eventually { stops.indices.all == [nil] })
      let value = UInt64(state.index) << 32 | UInt64(state.number)
      #expect(eventually { test.device.lost.all == [.reply(.getVringBase, value: value)] })
    }
  }

  @Test func `the death of a back end costs its queues, and its descriptors are closed`() throws {
    let probe = LeakProbe()
    let passed = probe.descriptor
    let backEnd = try FakeBackEnd { request in
      guard request.request == .getInflightFD else { return .normal }
      var description = InflightDescription(request.payload)
      description.size = 1
      return .bytes(FakeBackEnd.message(31, description.bytes), [passed])
    }
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0))
    #expect(eventually { backEnd.last(.setInflightFD) != nil })
    backEnd.die()
    #expect(eventually { test.failures.value == 1 })
    #expect(eventually { test.device.lost.all == [.closed] })
    #expect(!test.start(0))
    probe.letGo()
    // The back end got its region back; with its log, the last copy is closed.
    #expect(backEnd.last(.setInflightFD)?.descriptors.count == 1)
    backEnd.forget()
    #expect(eventually { probe.isClosed })
  }

  @Test func `a queue continues on a new connection with the inflight region and the used index`() throws {
    let first = try FakeBackEnd()
    let second = try FakeBackEnd()
    let test = try TestSession([first], reconnects: true)
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0, start: 0, used: 42))
    #expect(eventually { first.last(.setVringEnable) != nil })
    first.die()
    #expect(eventually { test.device.lost.all == [.closed] })
    test.dialer.add(second)
    #expect(eventually { second.last(.setVringEnable) != nil })
    #expect(second.last(.setVringBase)?.state == VringState(index: 0, number: 42))
    #expect(second.last(.getInflightFD) == nil)
    #expect(second.last(.setInflightFD)?.payload == first.last(.setInflightFD)?.payload)
    #expect(test.failures.value == 0)
    #expect(test.device.connected.all.count == 2)
  }

  @Test func `a disk's queue fails if the back end did not record its requests, a network's continues`() throws {
    for resumes in [false, true] {
      var abilities = FakeBackEnd.Abilities()
      abilities.protocolFeatures &= ~(1 << 12)
      let first = try FakeBackEnd(abilities)
      let second = try FakeBackEnd(abilities)
      let test = try TestSession([first, second], reconnects: true) { $0.resumesWithoutInflight = resumes }
      _ = try test.session.waitUntilConnected()
      #expect(test.start(0, used: 42))
      #expect(eventually { first.last(.setVringEnable) != nil })
      first.die()
      #expect(eventually { test.device.connected.all.count == 2 })
      if resumes {
        #expect(eventually { second.last(.setVringBase)?.state.number == 42 })
        #expect(test.failures.value == 0)
      } else {
        #expect(eventually { test.failures.value == 1 })
        #expect(second.last(.setVringNum) == nil)
        // After the driver's reset the new back end serves it.
        #expect(test.start(0))
        #expect(eventually { second.last(.setVringEnable) != nil })
      }
    }
  }

  @Test func `a queue whose used index cannot be read fails`() throws {
    let backEnds = try [FakeBackEnd(), FakeBackEnd()]
    let test = try TestSession(backEnds, reconnects: true)
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0, used: nil))
    #expect(eventually { backEnds[0].last(.setVringEnable) != nil })
    backEnds[0].die()
    #expect(eventually { test.failures.value == 1 })
  }

  @Test func `a back end that lacks features of the first one is not used`() throws {
    var abilities = FakeBackEnd.Abilities()
    let first = try FakeBackEnd(abilities)
    abilities.features &= ~(1 << 9)
    let second = try FakeBackEnd(abilities)
    let third = try FakeBackEnd()
    let test = try TestSession([first, second, third], reconnects: true)
    _ = try test.session.waitUntilConnected()
    test.session.require(1 << 9)
    first.die()
    #expect(eventually { test.device.connected.all.count == 2 })
    #expect(test.device.lost.all == [.closed, .lacksFeatures(1 << 9)])
    #expect(third.last(.setOwner) != nil)
  }

  @Test func `the end of a session closes the connection and completes a stop`() throws {
    let backEnd = try FakeBackEnd { $0.request == .getVringBase ? .silence : .normal }
    let test = try TestSession([backEnd], patience: 60_000_000_000)
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    let stops = Stops()
    _ = test.session.stop(queue: 0) { stops.indices.add($0) }
    #expect(eventually { backEnd.last(.getVringBase) != nil })
    test.session.end()
    #expect(eventually { stops.indices.all == [nil] })
    backEnd.die()
    #expect(test.device.lost.all.isEmpty)
  }
}
