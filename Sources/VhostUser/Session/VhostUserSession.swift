import Hardware
import Linux
import Synchronization

/// What a device learns from its session. All calls come on the loop's thread, without the session's lock.
public protocol VhostUserDevice: AnyObject, Sendable {
  /// Reports that a back end is connected, for the first time or again.
  func backEndConnected(_ backEnd: BackEnd)
  /// Reports that the back end is gone. The queues that it served have failed, or they wait for the next one.
  /// - Parameter isFinal: whether none will come.
  func backEndLost(_ error: VhostUserError, isFinal: Bool)
  /// Reports that the back end has changed the device configuration.
  func configurationChanged(_ bytes: [UInt8])
  /// Reports that the back end needs a translation, which `VhostUserSession.update` gives.
  /// - Parameters:
  ///   - address: an IOVA.
  ///   - permissions: bit 0 for reads, bit 1 for writes.
  func translationMissed(address: UInt64, permissions: UInt8)
}

/// The vhost-user front end of one device: the connection to its back end, on the machine's event loop.
///
/// A back end may lie, stall or die: each error and each missed deadline ends the connection, and costs only this
/// device. No method waits for the back end, except `waitUntilConnected`, which the device's builder calls.
///
/// Lock order: a caller may hold any lock; the session's own lock is a leaf. The loop's thread does the input and output
/// and calls the device, without that lock.
public final class VhostUserSession: Sendable {
  private struct State {
    var frontEnd: FrontEnd
    var hasEnded = false
    /// An error of the present connection that another thread has found.
    var fault: VhostUserError?
    /// The result of the first connection.
    var first: Result<BackEnd, VhostUserError>?
    var waiters: [Semaphore] = []
  }

  /// The sockets of one connection. Only the loop's thread uses them.
  private struct Link: Sendable {
    var requests: MessageSocket
    /// Nil after the back end has closed its end.
    var backEndRequests: MessageSocket?

    /// Whether everything has been sent.
    var isIdle: Bool { requests.isIdle && backEndRequests?.isIdle ?? true }

    var blockedSince: UInt64? {
      [requests.blockedSince, backEndRequests?.blockedSince].compactMap { $0 }.min()
    }
  }

  private let loop: EventLoop
  private let dialer: any BackEndDialer
  private let job: EventLoop.Job
  private let timer: EventLoop.Timer
  private let patience: UInt64
  private let outlivesFirstFailure: Bool
  private let device = Mutex<WeakDevice>(WeakDevice(device: nil))
  private let state: Mutex<State>
  private let link = Mutex<Link?>(nil)

  private struct WeakDevice: Sendable { weak let device: (any VhostUserDevice)? }

  /// - Precondition: the profile has at most 256 queues and at most `MemoryRegion.limit` regions.
  public init(_ profile: DeviceProfile, dialer: any BackEndDialer, on loop: EventLoop) {
    precondition(profile.queueCount <= VringDescriptor.queueLimit && profile.memory.count <= MemoryRegion.limit)
    self.loop = loop
    self.dialer = dialer
    patience = profile.patience
    outlivesFirstFailure = profile.outlivesFirstFailure
    state = Mutex(State(frontEnd: FrontEnd(profile, reconnects: dialer.reconnects)))
    job = EventLoop.Job(on: loop)
    timer = EventLoop.Timer(on: loop)
    job.onRun { [weak self] in self?.service() }
  }

  deinit {
    dialer.cancel()
    timer.stop()
  }

  // MARK: The device's side, any thread

  /// Begins to connect. Must be called once.
  public func connect() { dial() }

  /// Sets the device that the session reports to. The session does not keep it alive.
  public func setDevice(_ new: any VhostUserDevice) { device.withLock { $0 = WeakDevice(device: new) } }

  /// Waits for the end of the first handshake: at most the profile's patience for each answer. Must not be called on the
  /// loop's thread.
  public func waitUntilConnected() throws(VhostUserError) -> BackEnd {
    let waiter = Semaphore()
    let result = state.withLock { state in
      if state.first == nil { state.waiters.append(waiter) }
      return state.first
    }
    if let result { return try result.get() }
    waiter.wait()
    return try (state.withLock { $0.first } ?? .failure(.closed)).get()
  }

  /// Fixes the features that every later back end must have: those that the device offers its driver.
  public func require(_ features: UInt64) { state.withLock { $0.frontEnd.require(features) } }

  /// Replaces the features that every later back end must have, for a new device on the same connection.
  public func require(only features: UInt64, _ protocolFeatures: ProtocolFeatures) {
    state.withLock { $0.frontEnd.require(only: features, protocolFeatures) }
  }

  /// Starts a queue, now or when the next back end is connected.
  /// - Parameter features: those that the driver has accepted.
  /// - Returns: false if there is no back end and none will come.
  public func start(queue index: Int, _ ring: Ring, features: UInt64) -> Bool {
    let isAccepted = state.withLock { state in
      !state.hasEnded && state.frontEnd.start(queue: index, ring, features: features)
    }
    job.schedule()
    return isAccepted
  }

  /// Stops a queue.
  /// - Parameter completion: called once after `.pending`, on the loop's thread, at the latest when the back end has
  ///   missed its deadline; with the next available index, or nil if it is unknown.
  public func stop(queue index: Int, _ completion: @escaping @Sendable (UInt16?) -> Void) -> RingStop {
    let answer = state.withLock { state in state.frontEnd.stop(queue: index, completion) }
    job.schedule()
    return answer
  }

  public func setCall(_ call: SharedDescriptor?, queue index: Int) {
    state.withLock { $0.frontEnd.setCall(call, queue: index) }
    job.schedule()
  }

  /// Sets whether the back end may process a queue. A queue is enabled at first, and the setting survives a stop.
  public func setEnabled(_ isEnabled: Bool, queue index: Int) {
    state.withLock { $0.frontEnd.setEnabled(isEnabled, queue: index) }
    job.schedule()
  }

  /// Tells the back end that the driver has reset the device, after its queues have stopped.
  public func reset() {
    state.withLock { $0.frontEnd.reset() }
    job.schedule()
  }

  /// Sends a driver's write to the device configuration.
  public func writeConfiguration(offset: UInt32, _ bytes: [UInt8]) {
    state.withLock { $0.frontEnd.writeConfiguration(ConfigurationPayload(offset: offset, bytes: bytes)) }
    job.schedule()
  }

  /// Gives the back end a translation. It reaches the back end before each invalidation that is requested later.
  /// - Parameters:
  ///   - count: in bytes; 0 for 2^64.
  ///   - target: a guest physical address. The range must lie in one of the memory regions.
  ///   - permissions: bit 0 for reads, bit 1 for writes.
  public func update(address: UInt64, count: UInt64, target: UInt64, permissions: UInt8) {
    let message = IOTLBMessage(
      .update, address: address, count: count, userAddress: target, permissions: permissions)
    state.withLock { state in
      state.frontEnd.now = Clock.monotonic()
      state.frontEnd.update(message)
    }
    job.schedule()
  }

  /// Takes translations from the back end.
  /// - Parameters:
  ///   - ranges: first and last address of each.
  ///   - onAnswer: called once on the loop's thread, when the back end has dropped them or its connection has ended; not
  ///     called if this returns false.
  /// - Returns: false if the back end holds no translation.
  public func invalidate(
    _ ranges: [ClosedRange<UInt64>], onAnswer: @escaping @Sendable () -> Void
  ) -> Bool {
    let messages = ranges.map { range in
      // The end of the address space does not fit, neither in a size nor, in DPDK, in the sum of address and size: the
      // last byte stays out. The back end's entries are pages.
      let count = range.upperBound &- range.lowerBound
      return IOTLBMessage(
        .invalidate, address: range.lowerBound, count: range.upperBound == .max ? count : count + 1)
    }
    let isSent = state.withLock { state in
      state.frontEnd.now = Clock.monotonic()
      return state.frontEnd.invalidate(messages, onAnswer: onAnswer)
    }
    job.schedule()
    return isSent
  }

  /// Ends the session without waiting: closes the connection; stops that are pending complete without an index.
  public func end() {
    state.withLock { $0.hasEnded = true }
    dialer.cancel()
    job.schedule()
  }

  /// Ends the connection because the back end has not dropped translations in time. On return nothing more is sent to
  /// it. The loop's thread does the rest.
  public func cutOff() {
    state.withLock { $0.fault = .timeout(.iotlbMessage) }
    link.withLock { $0?.requests.shutDown() }
    job.schedule()
  }

  // MARK: The loop's thread

  private func dial() { dialer.dial { [weak self] result in self?.connected(result) } }

  private func connected(_ result: Result<PassedDescriptor, SystemError>) {
    do throws(SystemError) {
      try open(try result.get())
    } catch {
      return lose(.system(error))
    }
    service()
  }

  private func open(_ socket: PassedDescriptor) throws(SystemError) {
    socket.file.makeNonBlocking()
    // The back end's end stays blocking, as the socket of the front end is for it.
    let (ours, theirs) = try SocketPair().ends()
    ours.file.makeNonBlocking()
    let onEvent: @Sendable () -> Void = { [weak self] in self?.service() }
    let opened = Link(
      requests: try MessageSocket(socket, on: loop, onEvent),
      backEndRequests: try MessageSocket(ours, on: loop, onEvent))
    link.withLock { $0 = opened }
    state.withLock { state in
      state.fault = nil
      state.frontEnd.now = Clock.monotonic()
      state.frontEnd.connect(channel: SharedDescriptor(theirs.rawValue, owner: theirs))
    }
  }

  /// Reads and carries out what has arrived, and sends what is due.
  private func service() {
    let hasEnded = state.withLock { state in
      state.frontEnd.now = Clock.monotonic()
      return state.hasEnded
    }
    if hasEnded { return close() }
    do throws(VhostUserError) {
      if let fault = state.withLock({ $0.fault.take() }) { throw fault }
      try receiveReplies()
      try receiveRequests()
      try proceed()
      try state.withLock { (state) throws(VhostUserError) in
        try state.frontEnd.checkDeadline(at: Clock.monotonic())
      }
    } catch {
      return lose(error)
    }
    armTimer()
  }

  private func receiveReplies() throws(VhostUserError) {
    for _ in 0..<MessageSocket.batch {
      let message = try link.withLock { (link) throws(VhostUserError) in try link?.requests.receive() }
      guard let message else { return }
      try state.withLock { (state) throws(VhostUserError) in try state.frontEnd.receive(message) }
      deliver()
    }
  }

  private func receiveRequests() throws(VhostUserError) {
    for _ in 0..<MessageSocket.batch {
      let message = try link.withLock { (link) throws(VhostUserError) -> ReceivedMessage? in
        // While the back end does not read or does not acknowledge, its requests wait: each may make a message.
        guard let isIdle = link?.isIdle, isIdle, state.withLock({ $0.frontEnd.hasRoom }) else { return nil }
        do throws(VhostUserError) {
          return try link?.backEndRequests?.receive()
        } catch {
          // A back end without requests may close the channel.
          guard error == .closed else { throw error }
          link?.backEndRequests = nil
          return nil
        }
      }
      guard let message else { return }
      let answer = try state.withLock { (state) throws(VhostUserError) in
        try state.frontEnd.receiveRequest(message)
      }
      // The translation of a miss comes before the answer.
      deliver()
      try flush()
      guard let answer else { continue }
      try link.withLock { (link) throws(VhostUserError) in
        try link?.backEndRequests?.send([answer], now: Clock.monotonic())
      }
    }
  }

  /// Makes and sends the messages that bring the back end to the wanted state.
  private func proceed() throws(VhostUserError) {
    try flush()
    for (index, usedIndex) in state.withLock({ $0.frontEnd.interrupted }) {
      let used = usedIndex()
      state.withLock { $0.frontEnd.resume(queue: index, at: used) }
    }
    if link.withLock({ $0?.isIdle ?? false }) { state.withLock { $0.frontEnd.proceed() } }
    deliver()
    try flush()
  }

  private func flush() throws(VhostUserError) {
    let (output, hasRoom) = state.withLock { ($0.frontEnd.takeOutput(), $0.frontEnd.hasRoom) }
    let now = Clock.monotonic()
    try link.withLock { (link) throws(VhostUserError) in
      try link?.requests.send(output, now: now)
      try link?.backEndRequests?.send([], now: now)
      let isIdle = link?.isIdle ?? true
      link?.backEndRequests?.setReading(isIdle && hasRoom)
      if let since = link?.blockedSince, now &- since >= patience { throw .notReading }
    }
  }

  private func armTimer() {
    let answer = state.withLock { $0.frontEnd.deadline }
    let room = link.withLock { $0?.blockedSince }.map { $0 &+ patience }
    guard let due = [answer, room].compactMap({ $0 }).min() else { return timer.stop() }
    timer.start(at: due) { [weak self] in self?.service() }
  }

  /// Ends the connection after an error.
  private func lose(_ cause: VhostUserError) {
    let mayReconnect = dialer.reconnects
    let (isFirst, error) = state.withLock { state in
      // A session that was cut off may find its socket closed before it finds the cause.
      let error = state.fault.take() ?? cause
      let isFirst = state.first == nil
      // The builder of a device does not wait for a second back end.
      if isFirst { state.first = .failure(error) }
      return (isFirst, error)
    }
    let isFinal = !mayReconnect || isFirst && !outlivesFirstFailure
    closeLink()
    wakeWaiters()
    device.withLock { $0.device }?.backEndLost(error, isFinal: isFinal)
    if !isFinal { dial() }
  }

  private func close() {
    closeLink()
    state.withLock { $0.first = $0.first ?? .failure(.closed) }
    wakeWaiters()
  }

  private func closeLink() {
    timer.stop()
    // The socket is closed before the notices: one of them may be the end of an invalidation.
    withExtendedLifetime(link.withLock { $0.take() }) {}
    state.withLock { $0.frontEnd.disconnect() }
    deliver()
  }

  private func wakeWaiters() {
    let waiters = state.withLock { state in
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.signal() }
  }

  private func deliver() {
    let notices = state.withLock { $0.frontEnd.takeNotices() }
    if notices.isEmpty { return }
    let device = device.withLock { $0.device }
    for notice in notices {
      switch notice {
      case .ready(let backEnd):
        state.withLock { $0.first = $0.first ?? .success(backEnd) }
        wakeWaiters()
        device?.backEndConnected(backEnd)
      case .configurationChanged(let bytes): device?.configurationChanged(bytes)
      case .translationMiss(let address, let permissions):
        device?.translationMissed(address: address, permissions: permissions)
      case .call(let body): body()
      }
    }
  }
}
