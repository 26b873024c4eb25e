import Hardware
import Synchronization

// Device-TLB invalidations (VT-d 6.5.2.5, 6.5.2.6, 6.5.2.10). The unit sends each as a message with a tag to its
// function. The invalidation is outstanding until the function answers, or until its time is over.

/// The functions with a translation cache, and all invalidations that left the unit.
struct DeviceInvalidations: Sendable {
  /// ITag has 5 bits.
  static let tagCount: UInt8 = 32

  /// Ports of functions with a connected cache.
  var ports: [RemappedRequestPort] = []
  var outstanding = OutstandingInvalidations()
  /// Whether an invalidation in the queue waits for a tag, because every tag is outstanding.
  private(set) var lacksTag = false
  private var nextTag: UInt8 = 0

  /// Counts the ATS and page requests of functions.
  var counters = TranslationCounters()

  private var tags: [UInt8] {
    outstanding.all.compactMap { if case .function(_, let tag) = $0.receiver { tag } else { nil } }
  }

  /// Allocates a tag. Returns nil if every tag is outstanding.
  mutating func begin(for source: RequesterID) -> (tag: UInt8, number: UInt64)? {
    let tags = tags
    guard tags.count < Int(Self.tagCount) else {
      lacksTag = true
      return nil
    }
    var tag = nextTag
    while tags.contains(tag) { tag = (tag + 1) % Self.tagCount }
    nextTag = (tag + 1) % Self.tagCount
    lacksTag = false
    return (tag, outstanding.begin(.function(source, tag: tag)))
  }

  /// Ends the invalidations that a function answered.
  /// - Returns: whether each tag was outstanding for the source, and whether the queue can resume.
  mutating func complete(_ tags: UInt32, from source: RequesterID) -> (isExpected: Bool, resumes: Bool) {
    var rest = tags
    var wasAwaited = false
    outstanding.removeAll { invalidation in
      guard case .function(source, let tag) = invalidation.receiver, rest[bit: Int(tag)] else { return false }
      rest[bit: Int(tag)] = false
      if invalidation.isAwaited { wasAwaited = true }
      return true
    }
    return (rest == 0 && tags != 0, wasAwaited && mayResume)
  }

  /// Drops the invalidations that a removed function has not answered.
  /// - Returns: whether the queue can resume.
  mutating func abandon(_ source: RequesterID) -> Bool {
    let count = outstanding.all.count
    outstanding.removeAll { if case .function(source, _) = $0.receiver { $0.isAwaited } else { false } }
    return outstanding.all.count < count && mayResume
  }

  var mayResume: Bool { lacksTag || outstanding.hasWork }

  /// Drops the invalidations of functions. Those of remotes stay, so that a later wait includes them.
  mutating func reset() {
    outstanding.removeAll { if case .function = $0.receiver { true } else { false } }
    outstanding.dropParked()
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
    let (target, begun) = devices.withLock { devices -> (RemappedRequestPort?, (tag: UInt8, number: UInt64)?) in
      guard let port = devices.ports.first(where: { $0.requester.id == source }) else { return (nil, nil) }
      return (port, devices.begin(for: source))
    }
    guard let target else { return true }
    guard let begun else { return false }
    request.tag = begun.tag
    guard let cache = target.cache else {
      devices.withLock { _ = $0.outstanding.end(begun.number) }
      return true
    }
    cache.invalidate(request)
    guard let startsTimer = devices.withLock({ $0.outstanding.await(begun.number) }) else { return true }
    guard let deviceTimer else {
      devices.withLock { devices in
        devices.outstanding.end(begun.number)
        devices.outstanding.dropWait(except: nil)
      }
      timedOut(source)
      return true
    }
    if startsTimer { startTimer(deviceTimer) }
    return true
  }

  /// Limits the time of all outstanding invalidations.
  func startTimer(_ timer: any OneShotTimer) {
    timer.start(afterMilliseconds: OutstandingInvalidations.timerPeriod) { [weak self] in
      guard let self else { return }
      let (function, remotes, restarts, resumes) = devices.withLock { devices in
        let expired = devices.outstanding.tick()
        // An invalidation timeout aborts the wait descriptors that the unit has fetched (6.5.2.11).
        if expired.function != nil { devices.outstanding.dropWait(except: nil) }
        return (expired.function, expired.remotes, expired.restarts, devices.outstanding.hasWork)
      }
      if restarts { startTimer(timer) }
      if let function { timedOut(function) }
      if resumes { resumeQueue() }
      for remote in remotes { remote.timedOut() }
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
