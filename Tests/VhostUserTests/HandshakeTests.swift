import FakeVhostUser
import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import VhostUser

@Suite("the handshake with a back end") struct HandshakeTests {
  @Test func `the handshake asks for features, queues and configuration, and gives a channel`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    let found = try test.session.waitUntilConnected()
    #expect(found.features == backEnd.abilities.features && found.queueCount == 4)
    #expect(found.configuration == backEnd.abilities.configuration)
    #expect(
      backEnd.numbers == [
        .getFeatures, .getProtocolFeatures, .setProtocolFeatures, .getQueueNum, .setOwner, .setBackendReqFD, .getConfig,
      ])
    // Requests with a reply do not ask for an acknowledgement, nor does what comes before its negotiation.
    #expect(backEnd.log.map { $0.flags & 8 != 0 } == [false, false, false, false, true, true, false])
    #expect(backEnd.channel != nil)
    #expect(eventually { test.device.connected.all.count == 1 })
  }

  @Test func `only protocol features that the front end understands are accepted`() throws {
    var abilities = FakeBackEnd.Abilities()
    abilities.protocolFeatures = .max
    let backEnd = try FakeBackEnd(abilities)
    let test = try TestSession([backEnd])
    let found = try test.session.waitUntilConnected()
    let understood: UInt64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 16
    #expect(backEnd.last(.setProtocolFeatures)?.value == understood)
    #expect(found.protocolFeatures.rawValue == understood)
  }

  @Test func `a back end without protocol features is not asked for them`() throws {
    var abilities = FakeBackEnd.Abilities()
    abilities.features = 1 << 32
    let backEnd = try FakeBackEnd(abilities)
    let test = try TestSession([backEnd])
    let found = try test.session.waitUntilConnected()
    #expect(found.protocolFeatures == [] && found.queueCount == 2)
    #expect(eventually { backEnd.numbers == [.getFeatures, .setOwner] })
  }

  private func refusal(
    _ abilities: FakeBackEnd.Abilities = .init(), patience: UInt64 = 2_000_000_000,
    script: @escaping @Sendable (FakeBackEnd.Request) -> FakeBackEnd.Reaction = { _ in .normal },
    change: (inout DeviceProfile) -> Void = { _ in }
  ) throws -> VhostUserError? {
    let backEnd = try FakeBackEnd(abilities, script: script)
    let test = try TestSession([backEnd], patience: patience, change)
    do throws(VhostUserError) {
      _ = try test.session.waitUntilConnected()
      return nil
    } catch {
      return error
    }
  }

  @Test func `a back end that lacks what the device needs is refused`() throws {
    var abilities = FakeBackEnd.Abilities()
    let translating = try refusal(
      abilities,
      change: { profile in
        profile = DeviceProfile(queueCount: 1, queueSize: 1, queueCountWithoutReport: 1, usesTranslation: true)
      })
    #expect(translating == .lacksFeatures(1 << 33))
    abilities.protocolFeatures = 1 << 3
    let lacking = VhostUserError.lacksProtocolFeatures(.configuration)
    #expect(try refusal(abilities, change: { $0.requiredProtocolFeatures = [.configuration] }) == lacking)
    abilities = FakeBackEnd.Abilities()
    abilities.features = 1 << 32
    #expect(try refusal(abilities, change: { $0.requiredProtocolFeatures = [.configuration] }) == lacking)
    abilities = FakeBackEnd.Abilities()
    abilities.queueCount = 1
    #expect(try refusal(abilities) == .tooFewQueues(available: 1, needed: 2))
  }

  @Test func `a reply with another request, flags, size or descriptors is an error`() throws {
    func lie(_ bytes: [UInt8], _ descriptors: [Int32] = []) throws -> VhostUserError? {
      try refusal { $0.number == 1 ? .bytes(bytes, descriptors) : .normal }
    }
    let features = [UInt8](littleEndian: UInt64(1) << 32)
    #expect(
      try lie(FakeBackEnd.message(2, features)) == .unexpectedReply(request: 2, awaited: .getFeatures))
    #expect(try lie(FakeBackEnd.message(1, flags: 1, features)) == .messageFlags(request: 1, flags: 1))
    #expect(try lie(FakeBackEnd.message(1, flags: 0xd, features)) == .messageFlags(request: 1, flags: 0xd))
    #expect(try lie(FakeBackEnd.message(1, Array(features[..<4]))) == .messageSize(request: 1, size: 4))
    let probe = LeakProbe()
    #expect(
      try lie(FakeBackEnd.message(1, features), [probe.descriptor]) == .descriptors(request: 1, count: 1))
    probe.letGo()
    #expect(eventually { probe.isClosed })
    // A second reply to the same request.
    let message = FakeBackEnd.message(1, [UInt8](littleEndian: UInt64(1) << 32 | 1 << 30))
    #expect(try lie(message + message) == .unexpectedReply(request: 1, awaited: .getProtocolFeatures))
  }

  @Test func `a configuration of another length or place is an error`() throws {
    func lie(_ offset: UInt32, _ size: UInt32, _ count: Int) throws -> VhostUserError? {
      try refusal { request in
        guard request.request == .getConfig else { return .normal }
        let payload = [UInt8](littleEndian: offset, size, UInt32(0)) + [UInt8](repeating: 0, count: count)
        return .bytes(FakeBackEnd.message(24, payload), [])
      }
    }
    #expect(try lie(0, 16, 15) == .messageSize(request: 24, size: 27))
    #expect(try lie(4, 16, 16) == .reply(.getConfig, value: 4))
    #expect(try lie(0, 15, 16) == .reply(.getConfig, value: 15))
    // A payload of no bytes is the back end's word for an error.
    let error = try refusal { $0.request == .getConfig ? .bytes(FakeBackEnd.message(24, []), []) : .normal }
    #expect(error == .messageSize(request: 24, size: 0))
  }

  @Test func `a refusal of a request is an error`() throws {
    let error = try refusal { request in
      guard request.request == .setOwner else { return .normal }
      return .bytes(FakeBackEnd.message(3, [UInt8](littleEndian: UInt64(22))), [])
    }
    #expect(error == .refused(.setOwner, code: 22))
  }

  @Test func `a silent back end misses its deadline, and half a message is no answer`() throws {
    #expect(try refusal(patience: 100_000_000) { $0.number == 1 ? .silence : .normal } == .timeout(.getFeatures))
    #expect(
      try refusal { $0.number == 15 ? .bytes([15, 0, 0, 0, 5, 0], []) : .normal }
        == .timeout(.getProtocolFeatures))
  }

  @Test func `a back end that dies amid the handshake is an error`() throws {
    #expect(try refusal { $0.request == .setProtocolFeatures ? .close : .normal } == .closed)
  }

  @Test func `a path without a back end is an error at once, even with an interval`() throws {
    let loop = try EventLoop(name: "test")
    defer { loop.stop() }
    let dialer = ClientDialer(path: "/no/such/socket", interval: 1_000_000_000, on: loop)
    let session = VhostUserSession(
      DeviceProfile(queueCount: 1, queueSize: 1, queueCountWithoutReport: 1), dialer: dialer, on: loop)
    session.connect()
    #expect(throws: VhostUserError.system(SystemError("connect", "/no/such/socket", code: ENOENT))) {
      try session.waitUntilConnected()
    }
  }
}
