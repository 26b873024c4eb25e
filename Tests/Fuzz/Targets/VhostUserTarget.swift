#if TESTABLE
  import Hardware
  import Linux
  import TestSupport

  @testable import VhostUser

  // A back end answers the front end of a device with the input's bytes, usually in the form of the reply that is
  // awaited, while a driver starts, stops and resets queues. Every stop must end once, and the front end must not
  // collect messages without bound.

  extension FuzzTarget {
    static let vhostUser = FuzzTarget("vhost-user") { input throws(Finding) in
      var subject = FrontEndUnderTest(&input)
      var steps = 0
      while !input.isEmpty, steps < 300 {
        steps += 1
        try subject.step(&input)
      }
      try subject.finish()
    }
  }

  private struct FrontEndUnderTest {
    private static let queueCount = 3
    /// The messages of one step come on top of the limit.
    private static let messageLimit = FrontEnd.awaitedLimit + 64

    private final class Owner: Sendable {}

    private var frontEnd: FrontEnd
    private var assembler = MessageAssembler()
    private let owner = Owner()
    /// The requests that the back end has not answered yet.
    private var pending: [(request: UInt32, payload: [UInt8])] = []
    private var stops: [SharedInteger] = []
    private var pendingStops: [SharedInteger] = []
    /// The last invalidation.
    private var invalidation: SharedInteger?
    private let failures = SharedInteger()

    init(_ input: inout FuzzInput) {
      let form = input.byte()
      var profile = DeviceProfile(
        queueCount: Self.queueCount, queueSize: 64, queueCountWithoutReport: form & 1 == 0 ? Self.queueCount : 1,
        usesTranslation: form & 2 != 0)
      profile.configurationSize = form & 4 == 0 ? 8 : 0
      if form & 8 != 0 { profile.requiredProtocolFeatures.insert(.configuration) }
      profile.resumesWithoutInflight = form & 16 != 0
      let file = SharedDescriptor(0, owner: owner)
      profile.memory = [MemoryRegion(address: 0, size: 1 << 20, fileOffset: 0, file: file)]
      frontEnd = FrontEnd(profile, reconnects: form & 32 == 0)
      connect()
    }

    private var descriptor: SharedDescriptor { SharedDescriptor(0, owner: owner) }

    private mutating func connect() {
      assembler = MessageAssembler()
      pending = []
      frontEnd.connect(channel: descriptor)
    }

    mutating func step(_ input: inout FuzzInput) throws(Finding) {
      let queue = input.choice(Self.queueCount + 1)
      switch input.choice(16) {
      case 0, 1: start(queue, &input)
      case 2: stop(queue)
      case 3: frontEnd.setCall(input.byte() & 1 == 0 ? descriptor : nil, queue: queue)
      case 4: frontEnd.reset()
      case 5: frontEnd.writeConfiguration(ConfigurationPayload(offset: 0, bytes: [input.byte()]))
      case 6:
        // The unit sends the next invalidation after the end of this one.
        guard invalidation?.value != 0 else { break }
        let done = SharedInteger()
        let message = IOTLBMessage(.invalidate, address: input.value(), count: input.value())
        if frontEnd.invalidate([message], onAnswer: { done.increment() }) {
          invalidation = done
          pendingStops.append(done)
        }
      case 7: frontEnd.now &+= input.value() & 0xffff_ffff
      case 8: try request(&input)
      case 9: try raw(&input)
      default: try reply(&input)
      }
      try settle(&input)
    }

    private mutating func start(_ queue: Int, _ input: inout FuzzInput) {
      let used = input.word()
      let ring = Ring(
        size: 64, descriptorArea: input.value(), driverArea: input.value(), deviceArea: input.value(),
        startIndex: input.word(), kick: descriptor, call: descriptor, usedIndex: { used & 1 == 0 ? used : nil },
        fail: { [failures] in failures.increment() })
      _ = frontEnd.start(queue: queue, ring, features: 1 << 32 | UInt64(input.byte()) << 28)
    }

    private mutating func stop(_ queue: Int) {
      let done = SharedInteger()
      let answer = frontEnd.stop(queue: queue) { _ in done.increment() }
      guard answer == .pending else { return }
      stops.append(done)
      pendingStops.append(done)
    }

    // MARK: The back end

    /// Answers the oldest request, in its form, or nearly so.
    private mutating func reply(_ input: inout FuzzInput) throws(Finding) {
      guard !pending.isEmpty else { return }
      let (request, asked) = pending.removeFirst()
      var payload: [UInt8]
      var count = 0
      let isHonest = input.byte() & 7 != 0
      switch FrontEndRequest(rawValue: request) {
      case .getFeatures: payload = [UInt8](littleEndian: isHonest ? input.little(1) << 29 | 3 << 32 : input.value())
      case .getProtocolFeatures: payload = [UInt8](littleEndian: isHonest ? UInt64.max : input.value())
      case .getQueueNum: payload = [UInt8](littleEndian: isHonest ? 8 : input.value())
      case .getVringBase: payload = isHonest ? asked : [UInt8](littleEndian: input.value())
      case .getConfig: payload = asked
      case .getInflightFD:
        payload = asked
        payload[0] = input.byte()
        count = 1
      case .getStatus: payload = [UInt8](littleEndian: isHonest ? 0xb : input.value())
      default: payload = [UInt8](littleEndian: isHonest ? 0 : input.value())
      }
      if input.byte() == 0xff { count = input.choice(10) }
      if input.byte() == 0xff { payload = Array(payload.prefix(input.choice(12))) }
      try deliver(
        [UInt8](littleEndian: request, UInt32(5), UInt32(payload.count)) + payload,
        (0..<count).map { _ in descriptor }, &input)
    }

    /// Sends bytes that need not be a message.
    private mutating func raw(_ input: inout FuzzInput) throws(Finding) {
      var bytes: [UInt8] = []
      for _ in 0..<input.choice(40) { bytes.append(input.byte()) }
      try deliver(bytes, [], &input)
    }

    private mutating func deliver(
      _ bytes: [UInt8], _ descriptors: [SharedDescriptor], _ input: inout FuzzInput
    ) throws(Finding) {
      var rest = bytes[...]
      var descriptors = descriptors
      while !rest.isEmpty {
        let needed = assembler.needed
        try Finding.unless(needed > 0 && needed <= MessageHeader.payloadLimit, "\(needed) bytes are needed")
        let piece = rest.prefix(needed)
        rest = rest.dropFirst(needed)
        do throws(VhostUserError) {
          if let message = try assembler.take(Array(piece), descriptors) { try frontEnd.receive(message) }
        } catch {
          return try lose(&input)
        }
        descriptors = []
      }
    }

    private mutating func request(_ input: inout FuzzInput) throws(Finding) {
      // The session does not read it otherwise.
      guard frontEnd.hasRoom else { return }
      let number = UInt32(input.choice(6))
      let size = input.pick([0, IOTLBMessage.size, 8, 24])
      var payload: [UInt8] = []
      for _ in 0..<size { payload.append(input.byte()) }
      let flags = UInt32(input.pick([1, 9, 5, 1]))
      let isRight: Bool
      do throws(VhostUserError) {
        let header = try MessageHeader([UInt8](littleEndian: number, flags, UInt32(size)))
        let message = ReceivedMessage(header: header, payload: payload, descriptors: [])
        let answer = try frontEnd.receiveRequest(message)
        isRight = Self.isRight(answer, number)
      } catch {
        return try lose(&input)
      }
      try Finding.unless(isRight, "a wrong answer to request \(number)")
    }

    private static func isRight(_ answer: OutgoingMessage?, _ number: UInt32) -> Bool {
      guard let answer else { return true }
      return answer.bytes.count == 20 && answer.bytes.load(UInt32.self, at: 0) == number
    }

    private mutating func lose(_ input: inout FuzzInput) throws(Finding) {
      frontEnd.disconnect()
      runNotices()
      try checkStops()
      connect()
    }

    // MARK: What the session does after each event

    private mutating func settle(_ input: inout FuzzInput) throws(Finding) {
      do throws(VhostUserError) {
        try frontEnd.checkDeadline(at: frontEnd.now)
      } catch {
        try lose(&input)
      }
      for (index, usedIndex) in frontEnd.interrupted { frontEnd.resume(queue: index, at: usedIndex()) }
      send()
      frontEnd.proceed()
      send()
      runNotices()
      try Finding.unless(pending.count <= Self.messageLimit, "\(pending.count) requests are not answered")
    }

    private mutating func send() {
      for message in frontEnd.takeOutput() {
        let number = message.bytes.load(UInt32.self, at: 0)
        let isAsked = [1, 11, 15, 17, 24, 31, 40].contains(number) || message.bytes[4] & 8 != 0
        if isAsked { pending.append((number, Array(message.bytes[12...]))) }
      }
    }

    private mutating func runNotices() {
      for notice in frontEnd.takeNotices() {
        switch notice {
        case .call(let body): body()
        case .translationMiss(let address, let permissions):
          frontEnd.update(IOTLBMessage(.update, address: address, count: 4096, permissions: permissions))
        case .ready, .configurationChanged: break
        }
      }
    }

    /// Without a connection nothing is pending.
    private mutating func checkStops() throws(Finding) {
      invalidation = nil
      for stop in pendingStops { try Finding.unless(stop.value == 1, "a stop ended \(stop.value) times") }
      pendingStops = []
    }

    mutating func finish() throws(Finding) {
      frontEnd.disconnect()
      runNotices()
      try checkStops()
      for stop in stops { try Finding.unless(stop.value == 1, "a stop ended \(stop.value) times") }
    }
  }
#endif
