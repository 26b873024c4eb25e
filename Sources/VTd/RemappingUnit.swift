import Hardware
import Synchronization

/// One remapping hardware unit (VT-d 2.2): the register page on the memory bus, the ports of the functions behind the
/// unit, the interrupt remapper and the invalidation queue.
///
/// Lock order: `queue`, then the locks of observers and remotes; `registers.state`, then `ports`, then a port's lock;
/// `registers.state`, then the interrupt remapper's lock. A doorbell holds `queue` for at most one lap of the queue,
/// and never together with `registers.state` during a call out of the unit. `queue` is the only lock that the unit
/// holds while it calls an observer, a remote, an interrupt route or a message sink, or waits for requests in flight. A
/// request in flight must therefore never wait for `queue`.
public final class RemappingUnit: BusDevice, DMARemapper {
  public let options: UnitOptions
  public let capabilities: Capabilities

  /// The ports and the observers. They share a lock because every invalidation needs both.
  struct Ports {
    var all: [RemappingPort] = []
    /// Ports of connected remotes.
    var remotes: [RemappedRemotePort] = []
    var mode = TranslationMode()
    var observers = InvalidationObservers()
    /// Counters of removed ports and of the invalidation queue.
    var counters = TranslationCounters()
  }

  let memory: any PhysicalMemory
  private let messages: (any MessageSink)?
  let rules: WalkRules
  let registers: RegisterBlock
  let interrupts: InterruptRemapper
  let ports = Mutex(Ports())
  let queue = Mutex(PendingInvalidations())
  /// The place where the holder of `queue` waits for requests in flight.
  let parking: any Parking
  /// Outstanding invalidations of device TLBs and remote IOTLBs. Code that holds this lock takes no other lock.
  let devices = Mutex(DeviceInvalidations())
  /// Whether a remote IOTLB was ever connected.
  let hasRemotes = Atomic<Bool>(false)
  let deviceTimer: (any OneShotTimer)?
  /// Interrupt requests that functions make by DMA, from before their remapping until their delivery.
  let interruptsInFlight = RequestsInFlight()
  /// Page requests, from before their check until the unit has queued or answered them.
  let pageRequestsInFlight = RequestsInFlight()
  /// Whether a function answered while another thread held `queue`. That thread then serves the queue again.
  let resumes = Atomic<Bool>(false)
  let trace: Trace?

  /// - Parameters:
  ///   - faultEvent: the route of the fault event. The unit's own events are not remapped.
  ///   - invalidationEvent: the route of the invalidation completion event.
  ///   - pageRequestEvent: the route of the page request event, on a unit with `svm`.
  ///   - messages: receives functions' writes to the interrupt address range. Without it such writes fail.
  ///   - trace: receives the unit's trace events.
  ///   - parking: the place where a vCPU that invalidates sleeps while requests are in flight. No other unit may use
  ///     it.
  ///   - deviceTimer: limits the time that functions have to answer device-TLB invalidations, and remotes to complete
  ///     theirs. Without it a receiver that does not answer at once times out.
  /// - Throws: the error of `UnitOptions.validate`.
  public init(
    options: UnitOptions, memory: any PhysicalMemory, faultEvent: any InterruptRoute,
    invalidationEvent: any InterruptRoute, pageRequestEvent: (any InterruptRoute)? = nil,
    messages: (any MessageSink)? = nil, trace: Trace? = nil, parking: any Parking,
    deviceTimer: (any OneShotTimer)? = nil
  ) throws(UnitOptionError) {
    try options.validate()
    self.options = options
    self.memory = memory
    self.messages = messages
    self.parking = parking
    self.deviceTimer = deviceTimer
    self.trace = trace
    capabilities = Capabilities(options)
    rules = WalkRules(capabilities, ignoresTransientMapping: options.ignoresTransientMapping)
    registers = RegisterBlock(
      capabilities, faultEvent: faultEvent, invalidationEvent: invalidationEvent, pageRequestEvent: pageRequestEvent,
      trace: trace)
    interrupts = InterruptRemapper(memory: memory, trace: trace)
  }

  // MARK: Requests

  /// Makes the port of a function's requests without PASID.
  public func makePort(for requester: Requester) -> any DMAPort { makePort(for: requester, pasid: nil) }

  /// Makes the port of a function's requests with one PASID, or without.
  public func makePort(for requester: Requester, pasid: UInt32?) -> any DMAPort {
    makePort(for: requester, pasid: pasid, isPrivileged: false)
  }

  /// - Parameter isPrivileged: the requests have Privileged Mode Requested set. Requires a PASID.
  func makePort(for requester: Requester, pasid: UInt32?, isPrivileged: Bool) -> any DMAPort {
    let translation = PortTranslation(
      requestPASID: pasid, isPrivileged: isPrivileged, capabilities: capabilities, rules: rules, trace: trace)
    let port = RemappingPort(
      requester: requester, memory: memory, registers: registers, messages: messages,
      interruptsInFlight: interruptsInFlight, translation: translation)
    ports.withLock { ports in
      // A port that only this list references belongs to a removed function.
      for index in ports.all.indices.reversed() where isKnownUniquelyReferenced(&ports.all[index]) {
        ports.counters += ports.all[index].counters
        ports.all.remove(at: index)
      }
      port.set(ports.mode, forgetting: true)
      ports.all.append(port)
    }
    return port
  }

  /// Remaps an interrupt request from `source`.
  /// - Parameter recordFault: true for a real request: it is counted and traced, and its fault is recorded. The unit
  ///   may then send the fault event, so the caller must not hold a lock that the event's route takes.
  public func remap(_ message: InterruptMessage, from source: RequesterID, recordFault: Bool) -> RemappedInterrupt {
    switch interrupts.remap(message, from: source, isMade: recordFault) {
    case .success(let remapped):
      return .deliver(remapped)
    case .failure(let blocked):
      if recordFault, !blocked.isSuppressed {
        registers.record(
          FaultRecord(reason: blocked.reason, source: source, information: UInt64(blocked.index & 0xffff) << 48))
      }
      return .blocked(blocked.reason)
    }
  }

  /// Counts and traces an interrupt request that uses an earlier result of `remap`.
  public func note(_ message: InterruptMessage, remappedTo remapped: InterruptMessage, from source: RequesterID) {
    interrupts.note(message, remappedTo: remapped, from: source)
  }

  public var counters: TranslationCounters {
    var sum = interrupts.counters
    sum += devices.withLock { $0.counters }
    let (ports, remotes, counters) = ports.withLock { ($0.all, $0.remotes, $0.counters) }
    sum += counters
    for port in ports { sum += port.counters }
    for port in remotes { sum += port.counters }
    return sum
  }

  // MARK: Registers

  /// Restores the initial state: disables translation and interrupt remapping and empties the caches. Ports remain.
  public func reset() {
    registers.state.withLock { registers in
      registers.reset()
      publish(registers.translationMode, forgetting: true)
      interrupts.set(registers.interruptMode)
    }
    queue.withLock { pending in
      appendTranslationChange(&pending)
      pending.appendInterruptRemappingChange()
      devices.withLock { $0.reset() }
      complete(&pending)
    }
    resumeIfAsked()
  }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    guard offset < UInt64(RegisterFile.size) else { return 0 }
    let value = registers.state.withLock { $0.file.read(offset: Int(offset), width: width.rawValue) }
    trace?.record(.registerRead, [.hex("addr", offset), .number("size", width.rawValue), .hex("value", value)])
    return value
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    guard offset < UInt64(RegisterFile.size) else { return }
    trace?.record(.registerWrite, [.hex("addr", offset), .number("size", width.rawValue), .hex("value", value)])
    let effects = registers.state.withLock { registers in
      let before = registers.globalStatus
      let effects = registers.write(offset: Int(offset), width: width.rawValue, value: value)
      // The new mode is in force before software can see it in Global Status.
      if effects.translationChanged {
        let mode = registers.translationMode
        // On a unit with scalable mode, disabling translation empties the caches, too (VT-d 11.4.4.1, TE).
        publish(mode, forgetting: effects.rootTableSet || capabilities.scalableMode && !mode.enabled)
      }
      if effects.interruptRemappingChanged { interrupts.set(registers.interruptMode) }
      trace?.record(registers, before: before, effects)
      return effects
    }
    registers.send(effects)
    if effects.awaitsDrain || effects.command != nil {
      let completion = RegisterCompletion(effects)
      let isParked = queue.withLock { pending in
        if effects.translationChanged { appendTranslationChange(&pending) }
        if effects.interruptRemappingChanged { pending.appendInterruptRemappingChange() }
        if let invalidation = effects.command?.invalidation { apply(invalidation, &pending) }
        complete(&pending)
        return park(.registers(completion))
      }
      resumeIfAsked()
      if !isParked { finish(completion) }
    }
    if effects.doorbell { ports.withLock { $0.counters.count(.doorbells) } }
    if effects.serviceQueue { serviceQueue() }
  }

  private func publish(_ mode: TranslationMode, forgetting: Bool) {
    ports.withLock { ports in
      ports.mode = mode
      for port in ports.all { port.set(mode, forgetting: forgetting) }
      for port in ports.remotes { port.set(mode) }
    }
  }
}
