import Hardware

/// The front end of one device as a value: messages and requests in; messages, notices and a deadline out. It calls
/// nothing and knows no socket, so `VhostUserSession` keeps it under a lock that a vCPU may take.
///
/// The device's transport sets what each queue should be. `proceed` compares that with what the back end was last told
/// and makes the messages for the difference. So the number of messages does not grow with the number of requests, and
/// a new connection gets the same queues.
///
/// 1. Handshake, on each connection: features, protocol features, number of queues, owner, the channel for the back
///    end's requests, configuration.
/// 2. Session, when the driver enables the first queue: status, features, memory, the region of requests in flight.
/// 3. Rings: size, index, addresses, eventfds, enable. A stop is `VHOST_USER_GET_VRING_BASE`.
struct FrontEnd: Sendable {
  enum Phase: Sendable {
    case disconnected
    case handshake
    case ready
  }

  /// What the owner does after it has released the lock.
  enum Notice: Sendable {
    case ready(BackEnd)
    case configurationChanged([UInt8])
    /// An IOTLB miss: the back end needs a translation of the page, for bit 0 reads, for bit 1 writes.
    case translationMiss(address: UInt64, permissions: UInt8)
    case call(@Sendable () -> Void)
  }

  enum Session: Sendable {
    case none
    /// The back end allocates the region of requests in flight.
    case awaitsInflight
    case begun
  }

  enum QueuePhase: Sendable {
    case stopped
    case running
    case stopping
  }

  struct Queue: Sendable {
    /// The state that the transport wants; nil for a stopped queue.
    var wanted: Ring?
    /// The state that the back end has.
    var phase = QueuePhase.stopped
    /// Whether the back end has an older call descriptor.
    var hasStaleCall = false
    /// Whether the back end may process the queue, and whether it has another setting.
    var isEnabled = true
    var hasStaleEnable = false
    /// Whether the connection ended while the back end served the queue. Its index is unknown until it is read from the
    /// guest's memory.
    var wasInterrupted = false
    var onStop: (@Sendable (UInt16?) -> Void)?
  }

  struct Inflight: Sendable {
    let description: InflightDescription
    let file: SharedDescriptor
  }

  private struct Awaited: Sendable {
    let request: FrontEndRequest
    let deadline: UInt64
    /// The queue, for `getVringBase`.
    let index: UInt32
    let onAnswer: (@Sendable () -> Void)?
  }

  /// The number of awaited replies from which on the front end changes no queue and reads no request of the back end.
  static let awaitedLimit = 512

  private(set) var profile: DeviceProfile
  /// Whether a new connection follows a lost one.
  let reconnects: Bool
  var phase = Phase.disconnected
  var backEnd = BackEnd()
  /// The features that the driver has accepted.
  var driverFeatures: UInt64 = 0
  var session = Session.none
  /// The driver's features that the back end has.
  var sessionFeatures: UInt64 = 0
  var hasDriverOK = false
  /// Whether the back end may hold translations of an earlier session.
  var mayHoldTranslations = false
  var queues: [Queue]
  var inflight: Inflight?
  var needsReset = false
  var hasStaleConfiguration = false
  var configurationWrite: ConfigurationPayload?
  /// The end of the channel that the back end gets, until it is sent.
  var channel: SharedDescriptor?
  var now: UInt64 = 0
  private var awaited: [Awaited] = []
  private(set) var output: [OutgoingMessage] = []
  var notices: [Notice] = []

  init(_ profile: DeviceProfile, reconnects: Bool) {
    self.profile = profile
    self.reconnects = reconnects
    queues = Array(repeating: Queue(), count: profile.queueCount)
  }

  // MARK: The owner's side

  mutating func takeOutput() -> [OutgoingMessage] {
    defer { output = [] }
    return output
  }

  mutating func takeNotices() -> [Notice] {
    defer { notices = [] }
    return notices
  }

  /// The time at which `expire` is due, in nanoseconds; nil if nothing is awaited.
  var deadline: UInt64? { awaited.first?.deadline }

  /// - Throws: if an answer is overdue.
  func checkDeadline(at now: UInt64) throws(VhostUserError) {
    if let first = awaited.first, first.deadline <= now { throw .timeout(first.request) }
  }

  /// Fixes the features that a back end must have from now on: those that the device offers its driver.
  mutating func require(_ features: UInt64) { profile.requiredFeatures |= features }

  /// Replaces what a back end must have from now on.
  mutating func require(only features: UInt64, _ protocolFeatures: ProtocolFeatures) {
    profile.requiredFeatures = features
    profile.requiredProtocolFeatures = protocolFeatures
  }

  /// Ends the connection. Stops end without an index. Queues wait for the next connection, or fail.
  mutating func disconnect() {
    guard phase != .disconnected else { return }
    phase = .disconnected
    session = .none
    hasDriverOK = false
    mayHoldTranslations = false
    channel = nil
    output = []
    for entry in awaited { if let onAnswer = entry.onAnswer { notices.append(.call(onAnswer)) } }
    awaited = []
    for index in queues.indices { interrupt(index) }
    if !queues.contains(where: { $0.wanted != nil }) { inflight = nil }
  }

  private mutating func interrupt(_ index: Int) {
    let wasServed = queues[index].phase != .stopped
    queues[index].phase = .stopped
    queues[index].hasStaleCall = false
    queues[index].hasStaleEnable = false
    if let onStop = queues[index].onStop {
      queues[index].onStop = nil
      notices.append(.call { onStop(nil) })
    }
    guard let ring = queues[index].wanted else { return }
    if wasServed { queues[index].wasInterrupted = true }
    if profile.resumesWithoutInflight || reconnects && (!queues[index].wasInterrupted || inflight != nil) { return }
    fail(index, ring)
  }

  /// Ends a queue that cannot continue. The device's setting stays.
  mutating func fail(_ index: Int, _ ring: Ring) {
    queues[index] = Queue(isEnabled: queues[index].isEnabled)
    notices.append(.call(ring.fail))
  }

  // MARK: Messages

  /// Sends a request that has a reply of its own.
  mutating func ask(_ request: FrontEndRequest, _ payload: [UInt8] = [], index: UInt32 = 0) {
    send(request, payload, [], needsReply: false)
    expectAnswer(to: request, index: index)
  }

  /// Sends a request without a reply, and asks for an acknowledgement if the back end gives them.
  mutating func tell(
    _ request: FrontEndRequest, _ payload: [UInt8] = [], _ descriptors: [SharedDescriptor] = [],
    onAnswer: (@Sendable () -> Void)? = nil
  ) {
    let isAcknowledged = backEnd.protocolFeatures.contains(.replyAcknowledgement)
    send(request, payload, descriptors, needsReply: isAcknowledged)
    if isAcknowledged { expectAnswer(to: request, onAnswer: onAnswer) }
  }

  private mutating func send(
    _ request: FrontEndRequest, _ payload: [UInt8], _ descriptors: [SharedDescriptor], needsReply: Bool
  ) {
    let header = MessageHeader(
      request: request.rawValue, flags: needsReply ? [.version, .needReply] : .version, size: UInt32(payload.count))
    output.append(OutgoingMessage(bytes: header.bytes + payload, descriptors: descriptors))
  }

  private mutating func expectAnswer(
    to request: FrontEndRequest, index: UInt32 = 0, onAnswer: (@Sendable () -> Void)? = nil
  ) {
    awaited.append(
      Awaited(request: request, deadline: now &+ profile.patience, index: index, onAnswer: onAnswer))
  }

  func isAwaiting(_ request: FrontEndRequest) -> Bool { awaited.contains { $0.request == request } }

  /// Whether everything that was asked has been answered.
  var isSettled: Bool { awaited.isEmpty }

  /// Whether there is room for the messages about another queue, or for those that answer a miss.
  var hasRoom: Bool { awaited.count < Self.awaitedLimit }

  /// Takes a message of the back end, which must be the reply that is awaited first.
  mutating func receive(_ message: ReceivedMessage) throws(VhostUserError) {
    let header = message.header
    guard header.flags == [.version, .reply] else {
      throw .messageFlags(request: header.request, flags: header.flags.rawValue)
    }
    guard let entry = awaited.first, entry.request.rawValue == header.request else {
      throw .unexpectedReply(request: header.request, awaited: awaited.first?.request)
    }
    let expected = entry.request == .getInflightFD ? 1 : 0
    guard message.descriptors.count == expected else {
      throw .descriptors(request: header.request, count: message.descriptors.count)
    }
    let size =
      switch entry.request {
      case .getConfig: ConfigurationPayload.headerSize + profile.configurationSize
      case .getVringBase: VringState.size
      case .getInflightFD: InflightDescription.size
      default: 8
      }
    guard message.payload.count == size else {
      throw .messageSize(request: header.request, size: header.size)
    }
    // Not before: an entry that stays ends with the connection.
    awaited.removeFirst()
    // After a refusal the owner closes the connection before it handles the notices.
    if let onAnswer = entry.onAnswer { notices.append(.call(onAnswer)) }
    try accept(message, to: entry)
    if phase == .handshake { try proceedWithHandshake(after: entry.request) }
  }

  private mutating func accept(_ message: ReceivedMessage, to entry: Awaited) throws(VhostUserError) {
    let payload = message.payload
    switch entry.request {
    case .getFeatures: backEnd.features = payload.load(UInt64.self, at: 0)
    case .getProtocolFeatures: try acceptProtocolFeatures(payload.load(UInt64.self, at: 0))
    case .getQueueNum: try acceptQueueCount(payload.load(UInt64.self, at: 0))
    case .getConfig: try acceptConfiguration(payload)
    case .getVringBase: try acceptBase(VringState(payload), of: entry.index)
    case .getInflightFD: try acceptInflight(InflightDescription(payload), message.descriptors)
    case .getStatus: try acceptStatus(payload.load(UInt64.self, at: 0))
    case .setConfig:
      // The back end may refuse a driver's write. The driver sees the old value.
      if payload.load(UInt64.self, at: 0) != 0 { hasStaleConfiguration = true }
    default:
      let code = payload.load(UInt64.self, at: 0)
      if code != 0 { throw .refused(entry.request, code: code) }
    }
  }
}
