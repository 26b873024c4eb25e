import FakeVhostUser
import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import VhostUser

@Suite("requests of a back end") struct BackEndRequestTests {
  /// Sends a request on the channel.
  private func send(
    _ number: UInt32, flags: UInt32 = 9, _ payload: [UInt8], _ descriptors: [Int32] = [], from backEnd: FakeBackEnd
  ) throws {
    let channel = try #require(backEnd.channel)
    TestSupport.send(FakeBackEnd.message(number, flags: flags, payload), with: descriptors, over: channel.rawValue)
  }

  /// Reads the answer: the request's number and the value.
  private func answer(_ backEnd: FakeBackEnd) throws -> (UInt32, UInt64) {
    let channel = try #require(backEnd.channel)
    let (bytes, _) = try #require(try channel.file.receive(count: 20))
    try #require(bytes.count == 20)
    #expect(bytes.load(UInt32.self, at: 4) == 5 && bytes.load(UInt32.self, at: 8) == 8)
    return (bytes.load(UInt32.self, at: 0), bytes.load(UInt64.self, at: 12))
  }

  @Test func `a change of the configuration is read and reported`() throws {
    let count = SharedInteger()
    let backEnd = try FakeBackEnd { request in
      guard request.request == .getConfig else { return .normal }
      count.increment()
      let bytes = [UInt8](repeating: UInt8(count.value), count: 16)
      return .bytes(FakeBackEnd.message(24, Array(request.payload[..<12]) + bytes), [])
    }
    let test = try TestSession([backEnd])
    #expect(try test.session.waitUntilConnected().configuration.first == 1)
    try send(2, [], from: backEnd)
    #expect(try answer(backEnd) == (2, 0))
    #expect(eventually { test.device.configurations.all.map(\.first) == [2] })
  }

  @Test func `a host notifier and unknown requests are refused, and their descriptors closed`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    for number in [3, 4, 99] as [UInt32] {
      let probe = LeakProbe()
      try send(number, [UInt8](repeating: 0, count: 24), [probe.descriptor], from: backEnd)
      probe.letGo()
      #expect(try answer(backEnd) == (number, 1))
      #expect(eventually { probe.isClosed })
    }
    #expect(test.device.lost.all.isEmpty)
  }

  @Test func `a driver's write of the configuration reaches the back end, and a refused one is read again`() throws {
    let backEnd = try FakeBackEnd { request in
      guard request.request == .setConfig else { return .normal }
      return .bytes(FakeBackEnd.message(25, [UInt8](littleEndian: UInt64(1))), [])
    }
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    let reads = backEnd.log.count { $0.request == .getConfig }
    test.session.writeConfiguration(offset: 3, [1])
    #expect(eventually { backEnd.last(.setConfig)?.payload == [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1] })
    #expect(eventually { backEnd.log.count { $0.request == .getConfig } == reads + 1 })
    #expect(test.device.lost.all.isEmpty)
  }

  @Test func `a reply or a wrong size on the channel is an error`() throws {
    for (flags, payload, error) in [
      (5, [], .messageFlags(request: 2, flags: 5)), (1, [1], .messageSize(request: 2, size: 1)),
    ] as [(UInt32, [UInt8], VhostUserError)] {
      let backEnd = try FakeBackEnd()
      let test = try TestSession([backEnd])
      _ = try test.session.waitUntilConnected()
      try send(2, flags: flags, payload, from: backEnd)
      #expect(eventually { test.device.lost.all == [error] })
    }
  }

  @Test func `a flood of requests whose answers are not read is bounded`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    let channel = try #require(backEnd.channel)
    channel.file.makeNonBlocking()
    let message = FakeBackEnd.message(99, flags: 9, [])
    // The writes fail when both directions are full, and then the back end is given up.
    #expect(
      eventually {
        _ = try? channel.file.send(message[...])
        return !test.device.lost.all.isEmpty
      })
    #expect(test.device.lost.all == [.notReading])
  }

  @Test func `a closed channel does not end the connection`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    try #require(backEnd.channel).file.shutDown()
    #expect(test.start(0))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    #expect(test.device.lost.all.isEmpty)
  }
}

@Suite("the device IOTLB of a back end") struct RemoteTranslationTests {
  private static let platform: UInt64 = 1 << 33

  private func session(
    script: @escaping @Sendable (FakeBackEnd.Request) -> FakeBackEnd.Reaction = { _ in .normal }
  ) throws -> (FakeBackEnd, TestSession) {
    var abilities = FakeBackEnd.Abilities()
    abilities.features |= Self.platform
    let backEnd = try FakeBackEnd(abilities, script: script)
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    #expect(test.session.start(queue: 0, test.ring(), features: TestSession.features | Self.platform))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    return (backEnd, test)
  }

  @Test func `a miss is reported, and its translation comes before the answer`() throws {
    let (backEnd, test) = try session()
    let miss = IOTLBMessage(.miss, address: 0x5000, count: 0, permissions: 2)
    let channel = try #require(backEnd.channel)
    TestSupport.send(FakeBackEnd.message(1, flags: 9, miss.bytes), with: [], over: channel.rawValue)
    #expect(eventually { test.device.misses.all == [0x5000] })
    test.session.update(address: 0x5000, count: 0x1000, target: 0x9000, permissions: 3)
    let update = IOTLBMessage(.update, address: 0x5000, count: 0x1000, userAddress: 0x9000, permissions: 3)
    #expect(eventually { backEnd.last(.iotlbMessage)?.payload == update.bytes })
    let (bytes, _) = try #require(try channel.file.receive(count: 20))
    #expect(bytes == FakeBackEnd.message(1, [UInt8](repeating: 0, count: 8)))
  }

  @Test func `an invalidation ends with the back end's acknowledgement`() throws {
    let (backEnd, test) = try session()
    let done = SharedInteger()
    #expect(test.session.invalidate([0x1000...0x1fff, 0xf000...UInt64.max, 0...UInt64.max]) { done.increment() })
    #expect(eventually { done.value == 1 })
    let messages = backEnd.log.filter { $0.request == .iotlbMessage }
    #expect(
      messages.map(\.payload) == [
        IOTLBMessage(.invalidate, address: 0x1000, count: 0x1000).bytes,
        // DPDK adds the address and the count.
        IOTLBMessage(.invalidate, address: 0xf000, count: .max - 0xf000).bytes,
        IOTLBMessage(.invalidate, address: 0, count: .max).bytes,
      ])
    // It is an acknowledgement of the last message, not of the first.
    #expect(messages.allSatisfy { $0.flags & 8 != 0 })
  }

  @Test func `an unanswered or refused invalidation ends with the connection`() throws {
    for reaction in [
      .silence, .bytes(FakeBackEnd.message(22, [1, 0, 0, 0, 0, 0, 0, 0]), []), .bytes(FakeBackEnd.message(22, [0]), []),
    ] as [FakeBackEnd.Reaction] {
      let (_, test) = try session { $0.request == .iotlbMessage ? reaction : .normal }
      let done = SharedInteger()
      #expect(test.session.invalidate([0x1000...0x1fff]) { done.increment() })
      #expect(eventually { done.value == 1 })
      #expect(eventually { test.failures.value == 1 })
      // There is no connection, so there is nothing to take away.
      #expect(!test.session.invalidate([0x1000...0x1fff]) { done.increment() })
      #expect(done.value == 1)
    }
  }

  @Test func `without translation there is nothing to invalidate, and a miss is refused`() throws {
    let backEnd = try FakeBackEnd()
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    #expect(test.start(0))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    #expect(!test.session.invalidate([0...1]) {})
    let channel = try #require(backEnd.channel)
    let miss = IOTLBMessage(.miss, address: 0x5000, count: 0, permissions: 2)
    TestSupport.send(FakeBackEnd.message(1, flags: 9, miss.bytes), with: [], over: channel.rawValue)
    let (bytes, _) = try #require(try channel.file.receive(count: 20))
    #expect(bytes == FakeBackEnd.message(1, [1, 0, 0, 0, 0, 0, 0, 0]))
    #expect(test.device.misses.all.isEmpty)
  }

  @Test func `misses wait while the back end acknowledges no translation`() throws {
    let (backEnd, test) = try session { $0.request == .iotlbMessage ? .silence : .normal }
    let channel = try #require(backEnd.channel)
    let miss = IOTLBMessage(.miss, address: 0x5000, count: 0, permissions: 2)
    for sent in 1...2 * FrontEnd.awaitedLimit {
      TestSupport.send(FakeBackEnd.message(1, flags: 1, miss.bytes), with: [], over: channel.rawValue)
      guard eventually({ test.device.misses.all.count == sent || test.failures.value > 0 }) else { break }
      test.session.update(address: 0x5000, count: 0x1000, target: 0x9000, permissions: 3)
    }
    #expect(test.device.misses.all.count <= FrontEnd.awaitedLimit + 1)
    #expect(eventually { test.failures.value == 1 })
  }

  @Test func `a back end without acknowledgements gets no translation`() throws {
    let backEnd = try FakeBackEnd { request in
      guard request.request == .getProtocolFeatures else { return .normal }
      let features: ProtocolFeatures = [.backEndRequests, .multiqueue]
      return .bytes(FakeBackEnd.message(15, [UInt8](littleEndian: features.rawValue)), [])
    }
    let test = try TestSession([backEnd])
    _ = try test.session.waitUntilConnected()
    #expect(test.session.start(queue: 0, test.ring(), features: TestSession.features | Self.platform))
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    test.session.update(address: 0x5000, count: 0x1000, target: 0x9000, permissions: 3)
    // Its end would never be reported.
    #expect(!test.session.invalidate([0x5000...0x5fff]) {})
    #expect(backEnd.last(.iotlbMessage) == nil)
  }

  @Test func `a cut-off back end is gone at once`() throws {
    let (backEnd, test) = try session()
    test.session.cutOff()
    #expect(eventually { test.device.lost.all == [.timeout(.iotlbMessage)] })
    #expect(eventually { test.failures.value == 1 })
    withExtendedLifetime(backEnd) {}
  }
}
