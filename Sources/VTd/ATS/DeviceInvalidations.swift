import Hardware
import Synchronization

// Device-TLB invalidations (VT-d 6.5.2.5, 6.5.2.6, 6.5.2.10). The unit sends each as a message with a tag to its
// function. The invalidation is outstanding until the function answers, or until its time is over. Meanwhile the unit
// parks a wait descriptor that follows in the queue, so no vCPU has to wait.

/// Outstanding invalidations between the invalidation queue and the functions with a translation cache.
struct DeviceInvalidations: Sendable {
  struct Outstanding: Sendable {
    let tag: UInt8
    let source: RequesterID
    /// Whether the function has received the message and did not answer at once.
    var isAwaited = false
    /// Expirations of the timer since `isAwaited` was set.
    var ticks = 0
  }

  /// A wait descriptor that waits for outstanding invalidations. The queue's head is already past it.
  struct ParkedWait: Sendable {
    let wait: InvalidationWait
    let generation: UInt64
  }

  /// ITag has 5 bits.
  static let tagCount: UInt8 = 32
  /// In milliseconds. An invalidation times out at the timer's second expiration, after half a second to a second. Real
  /// functions have a minute to answer (PCI Express Base 10.3.1). Emulated functions answer in microseconds or never,
  /// and the guest polls meanwhile.
  static let timerPeriod: UInt32 = 500

  /// Ports of functions with a connected cache.
  var ports: [RemappedRequestPort] = []
  var outstanding: [Outstanding] = []
  var parkedWait: ParkedWait?
  /// Whether an invalidation in the queue waits for a tag, because every tag is outstanding.
  var lacksTag = false
  private var timerRuns = false
  private var nextTag: UInt8 = 0

  /// Counts the ATS and page requests of functions.
  var counters = TranslationCounters()

  /// Allocates a tag. Returns nil if every tag is outstanding.
  mutating func begin(for source: RequesterID) -> UInt8? {
    guard outstanding.count < Int(Self.tagCount) else {
      lacksTag = true
      return nil
    }
    var tag = nextTag
    while outstanding.contains(where: { $0.tag == tag }) { tag = (tag + 1) % Self.tagCount }
    nextTag = (tag + 1) % Self.tagCount
    lacksTag = false
    outstanding.append(Outstanding(tag: tag, source: source))
    return tag
  }

  /// Marks an invalidation that the function did not answer at once.
  /// - Returns: whether the caller must start the timer.
  mutating func await(_ tag: UInt8) -> Bool {
    guard let index = outstanding.firstIndex(where: { $0.tag == tag }) else { return false }
    outstanding[index].isAwaited = true
    defer { timerRuns = true }
    return !timerRuns
  }

  /// Ends the invalidations that a function answered.
  /// - Returns: whether each tag was outstanding for the source, and whether the queue can resume.
  mutating func complete(_ tags: UInt32, from source: RequesterID) -> (isExpected: Bool, resumes: Bool) {
    var rest = tags
    var wasAwaited = false
    outstanding.removeAll { invalidation in
      guard invalidation.source == source, rest[bit: Int(invalidation.tag)] else { return false }
      rest[bit: Int(invalidation.tag)] = false
      if invalidation.isAwaited { wasAwaited = true }
      return true
    }
    return (rest == 0 && tags != 0, wasAwaited && mayResume)
  }

  /// Drops the invalidations that a removed function has not answered.
  /// - Returns: whether the queue can resume.
  mutating func abandon(_ source: RequesterID) -> Bool {
    let count = outstanding.count
    outstanding.removeAll { $0.source == source && $0.isAwaited }
    return outstanding.count < count && mayResume
  }

  private var mayResume: Bool { lacksTag || parkedWait != nil && outstanding.isEmpty }

  /// Handles an expiration of the timer.
  /// - Returns: the source of an invalidation that timed out, and whether the caller must start the timer again.
  mutating func tick() -> (expired: RequesterID?, restarts: Bool) {
    var expired: RequesterID?
    for index in outstanding.indices where outstanding[index].isAwaited {
      outstanding[index].ticks += 1
      if outstanding[index].ticks >= 2, expired == nil { expired = outstanding[index].source }
    }
    outstanding.removeAll { $0.ticks >= 2 }
    // An invalidation timeout aborts the wait descriptors that the unit has fetched (6.5.2.11).
    if expired != nil { parkedWait = nil }
    timerRuns = outstanding.contains { $0.isAwaited }
    return (expired, timerRuns)
  }

  /// Times out an invalidation at once, on a unit without a timer.
  mutating func expire(_ tag: UInt8) {
    outstanding.removeAll { $0.tag == tag }
    parkedWait = nil
  }

  mutating func reset() {
    outstanding = []
    parkedWait = nil
    lacksTag = false
  }
}

extension RemappingUnit {
  func setConnected(_ port: RemappedRequestPort, _ isConnected: Bool) {
    let resumes = devices.withLock { devices in
      devices.ports.removeAll { $0 === port }
      if isConnected {
        devices.ports.append(port)
        return false
      }
      return devices.abandon(port.requester.id)
    }
    if resumes { resumeQueue() }
  }

  /// Sends a device-TLB invalidation to its function. If the function is missing or has no cache, sends nothing, as in
  /// QEMU.
  /// - Returns: false if nothing was sent because every tag is outstanding.
  func send(_ invalidation: Invalidation) -> Bool {
    let source: RequesterID
    var request: InvalidateRequest
    switch invalidation {
    case .deviceTLB(let id, let pages):
      source = id
      request = InvalidateRequest(tag: 0, pasid: nil, isGlobal: false, first: pages.first, last: pages.last)
    case .deviceTLBOfPASID(let id, let pasid, let pages):
      source = id
      request = InvalidateRequest(
        tag: 0, pasid: pasid, isGlobal: pasid == nil, first: pages.first, last: pages.last)
    default: return true
    }
    let (target, tag) = devices.withLock { devices -> (RemappedRequestPort?, UInt8?) in
      guard let port = devices.ports.first(where: { $0.requester.id == source }) else { return (nil, nil) }
      return (port, devices.begin(for: source))
    }
    guard let target else { return true }
    guard let tag else { return false }
    request.tag = tag
    guard let cache = target.cache else {
      devices.withLock { _ = $0.complete(1 << UInt32(tag), from: source) }
      return true
    }
    cache.invalidate(request)
    let (isAnswered, startsTimer) = devices.withLock { devices in
      guard devices.outstanding.contains(where: { $0.tag == tag }) else { return (true, false) }
      return (false, devices.await(tag))
    }
    if isAnswered { return true }
    guard let deviceTimer else {
      devices.withLock { $0.expire(tag) }
      timedOut(source)
      return true
    }
    if startsTimer { startTimer(deviceTimer) }
    return true
  }

  private func startTimer(_ timer: any OneShotTimer) {
    timer.start(afterMilliseconds: DeviceInvalidations.timerPeriod) { [weak self] in
      guard let self else { return }
      let (expired, restarts) = devices.withLock { $0.tick() }
      if restarts { startTimer(timer) }
      if let expired { timedOut(expired) }
    }
  }

  private func timedOut(_ source: RequesterID) {
    var effects = UnitRegisters.Effects()
    registers.state.withLock { registers in
      // The record keeps the first source until software clears the error (VT-d 11.4.9.9).
      if !registers.faultStatus.contains(.invalidationTimeoutError) {
        registers.file[quadword: RegisterOffset.invalidationQueueErrorRecord][bits: 32...47] = UInt64(source.rawValue)
      }
      registers.raise(.invalidationTimeoutError, &effects)
    }
    registers.send(effects)
  }

  /// Handles an Invalidate Completion message. Sets ICE if a tag in it is not outstanding for the source.
  func complete(invalidations tags: UInt32, from source: RequesterID) {
    let (isExpected, resumes) = devices.withLock { $0.complete(tags, from: source) }
    if !isExpected {
      var effects = UnitRegisters.Effects()
      registers.state.withLock { registers in
        if !registers.faultStatus.contains(.invalidationCompletionError) {
          registers.file[quadword: RegisterOffset.invalidationQueueErrorRecord][bits: 48...63] = UInt64(source.rawValue)
        }
        registers.raise(.invalidationCompletionError, &effects)
      }
      registers.send(effects)
    }
    if resumes { resumeQueue() }
  }

  /// Delivers a page group response to its function, if the function exists.
  func deliver(_ response: PageGroupResponse, to source: RequesterID) {
    trace?.record(
      .pageAnswered,
      [.source(source), .number("group", response.groupIndex), .number("code", response.code.rawValue)]
        + (response.pasid.map { [.hex("pasid", $0)] } ?? []))
    let port = devices.withLock { devices in devices.ports.first { $0.requester.id == source } }
    port?.cache?.receive(response)
  }
}
