import FakeVhostUser
import Glibc
import Hardware
import TestSupport
import Testing

@testable import VhostUser

/// The parts of a session that the network alone uses.
@Suite("a session of the network", .timeLimit(.minutes(1))) struct NetworkSessionTests {
  @Test func `a queue is disabled and enabled while it runs, and starts as it was left`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    test.session.setEnabled(false, queue: 0)
    #expect(test.start(0))
    func enables() -> [UInt32] { backEnd.log.filter { $0.request == .setVringEnable }.map(\.state.number) }
    #expect(eventually { enables() == [0] })
    test.session.setEnabled(true, queue: 0)
    #expect(eventually { enables() == [0, 1] })
    // Without a change there is no message.
    test.session.setEnabled(true, queue: 0)
    test.session.setEnabled(false, queue: 0)
    #expect(eventually { enables() == [0, 1, 0] })
  }

  @Test func `the back end's report counts pairs`() throws {
    for (report, isEnough) in [(1, false), (2, true)] as [(UInt64, Bool)] {
      var abilities = FakeBackEnd.Abilities()
      abilities.queueCount = report
      let test = try TestSession([try FakeBackEnd(abilities)]) {
        $0.queueCount = 4
        $0.queuesPerReport = 2
      }
      if isEnough {
        #expect(throws: Never.self) { try test.session.waitUntilConnected() }
      } else {
        #expect(throws: VhostUserError.tooFewQueues(available: 1, needed: 2)) {
          try test.session.waitUntilConnected()
        }
      }
    }
  }

  @Test func `a second try follows a failed first connection, if the profile asks for it`() throws {
    let liar = try FakeBackEnd { $0.request == .getFeatures ? .close : .normal }
    let test = try TestSession([liar, try FakeBackEnd()], reconnects: true) { $0.outlivesFirstFailure = true }
    #expect(throws: VhostUserError.closed) { try test.session.waitUntilConnected() }
    #expect(eventually { test.device.connected.all.count == 1 })
  }

  @Test func `a new session takes the translations of the one before`() throws {
    var abilities = FakeBackEnd.Abilities()
    abilities.features |= 1 << 33
    abilities.protocolFeatures &= ~(1 << 12)
    let backEnd = try FakeBackEnd(abilities)
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    func invalidations() -> Int { backEnd.log.filter { $0.request == .iotlbMessage && $0.payload[25] == 3 }.count }
    #expect(test.start(0, features: 1 << 32 | 1 << 33))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    #expect(invalidations() == 0)
    let stops = Notes<UInt16?>()
    _ = test.session.stop(queue: 0) { stops.add($0) }
    test.session.reset()
    #expect(eventually { stops.all.count == 1 })
    #expect(test.start(0, features: 1 << 32 | 1 << 33))
    #expect(eventually { backEnd.log.filter { $0.request == .setVringEnable }.count == 2 })
    #expect(invalidations() == 1)
  }
}
