import Hardware
import Synchronization

/// One remapping hardware unit (VT-d 2.2): the register page on the memory bus, the ports of the functions behind the
/// unit, the interrupt remapper and the invalidation queue.
///
/// Lock order: `queue`, then the observers' own locks; `registers.state`, then `ports`, then a port's lock;
/// `registers.state`, then the interrupt remapper's lock. A doorbell holds `queue` for at most one lap of the queue,
/// and never together with `registers.state` during a call out of the unit. `queue` is the only lock that the unit
/// holds while it calls an observer, an interrupt route or a message sink, or waits for requests in flight. So a
/// request in flight must never wait for `queue`.
public final class TranslationUnit: BusDevice, DMARemapper {
  public let options: UnitOptions
  public let capabilities: Capabilities

  struct Ports {
    var all: [RemappingPort] = []
    var mode = TranslationMode()
    /// Counters of removed ports.
    var retired = TranslationCounters()
  }

  private struct Observation {
    var observers: [any InvalidationObserver] = []
    var counters = TranslationCounters()
  }

  let memory: any PhysicalMemory
  private let messages: (any MessageSink)?
  let rules: WalkRules
  let registers: RegisterBlock
  let interrupts: InterruptRemapper
  let ports = Mutex(Ports())
  private let observation = Mutex(Observation())
  private let queue = Mutex(Pending())
  /// Where the holder of `queue` waits for requests in flight.
  private let parking: any Parking
  /// Outstanding device-TLB invalidations. A leaf lock.
  let devices = Mutex(DeviceInvalidations())
  let deviceTimer: (any OneShotTimer)?
  /// Interrupt requests that functions make by DMA, from before their remapping until their delivery.
  private let interruptsInFlight = RequestsInFlight()
  /// Page requests, from before their check until the unit has queued or answered them.
  let pageRequestsInFlight = RequestsInFlight()
  /// A function answered while another thread held `queue`. That thread then serves the queue again.
  private let resumes = Atomic<Bool>(false)
  let trace: Trace?

  /// Invalidations that have been applied to the unit's caches and are not yet complete.
  private struct Pending {
    /// Invalidations that the observers have not received yet, in the guest's order.
    var invalidations: [Invalidation] = []
    /// Ports whose requests in flight may use invalidated entries.
    var ports: [RemappingPort] = []
    /// Interrupt requests in flight may use an invalidated entry or table.
    var concernsInterrupts = false

    mutating func append(_ port: RemappingPort) {
      if !ports.contains(where: { $0 === port }) { ports.append(port) }
    }
  }

  /// - Parameters:
  ///   - faultEvent: the route of the fault event. The unit's own events are not remapped.
  ///   - invalidationEvent: the route of the invalidation completion event.
  ///   - pageRequestEvent: the route of the page request event, on a unit with `svm`.
  ///   - messages: receives functions' writes to the interrupt address range. Without it such writes fail.
  ///   - trace: receives the unit's trace events.
  ///   - parking: where a vCPU that invalidates sleeps while requests are in flight. Only this unit uses it.
  ///   - deviceTimer: limits the time that functions have to answer device-TLB invalidations. Without it a function
  ///     that does not answer at once times out.
  /// - Throws: what `UnitOptions.validate` finds.
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
    rules = WalkRules(capabilities, staleTranslationMethod: options.staleTranslationMethod)
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
    let reachable: any PhysicalMemory =
      messages.map {
        RequesterMemory(ram: memory, requester: requester, messages: $0, inFlight: interruptsInFlight)
      } ?? memory
    let translation = PortTranslation(
      requestPASID: pasid, isPrivileged: isPrivileged, capabilities: capabilities, rules: rules, trace: trace)
    let port = RemappingPort(
      requester: requester, memory: reachable, ram: memory, registers: registers, translation: translation)
    ports.withLock { ports in
      // A port that only this list references belongs to a removed function.
      for index in ports.all.indices.reversed() where isKnownUniquelyReferenced(&ports.all[index]) {
        ports.retired += ports.all[index].counters
        ports.all.remove(at: index)
      }
      port.set(ports.mode, forgetting: true)
      ports.all.append(port)
    }
    return port
  }

  /// Remaps an interrupt request from `source`.
  /// - Parameter recordFault: true for a real request: it is counted and traced, and its fault is recorded. The fault
  ///   event may go through its route, so the caller must not hold a lock that the route takes.
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

  // MARK: Observers and counters

  public func addObserver(_ observer: any InvalidationObserver) {
    observation.withLock { $0.observers.append(observer) }
  }

  public func removeObserver(_ observer: any InvalidationObserver) {
    observation.withLock { $0.observers.removeAll { $0 === observer } }
  }

  public var counters: TranslationCounters {
    var sum = interrupts.counters
    sum += observation.withLock { $0.counters }
    sum += devices.withLock { $0.counters }
    let (ports, retired) = ports.withLock { ($0.all, $0.retired) }
    sum += retired
    for port in ports { sum += port.counters }
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
      pending.ports = ports.withLock { $0.all }
      pending.invalidations.append(.translationChanged)
      pending.invalidations.append(.interruptRemappingChanged)
      pending.concernsInterrupts = true
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
      queue.withLock { pending in
        if effects.translationChanged {
          pending.ports = ports.withLock { $0.all }
          pending.invalidations.append(.translationChanged)
        }
        if effects.interruptRemappingChanged {
          pending.invalidations.append(.interruptRemappingChanged)
          pending.concernsInterrupts = true
        }
        if let invalidation = effects.command?.invalidation { carryOut(invalidation, &pending) }
        complete(&pending)
      }
      resumeIfAsked()
      registers.state.withLock { registers in
        if effects.awaitsDrain { registers.completeGlobalCommand() }
        if let command = effects.command { registers.complete(command) }
      }
    }
    if effects.doorbell { observation.withLock { $0.counters.count(.doorbells) } }
    if effects.serviceQueue { serviceQueue() }
  }

  private func publish(_ mode: TranslationMode, forgetting: Bool) {
    ports.withLock { ports in
      ports.mode = mode
      for port in ports.all { port.set(mode, forgetting: forgetting) }
    }
  }

  // MARK: Invalidation

  /// Executes descriptors until the queue is empty, one is invalid, or one lap is complete. Software that adds more
  /// meanwhile rings the doorbell again and spends its own time on them.
  private func serviceQueue() {
    queue.withLock { service(&$0) }
    resumeIfAsked()
  }

  /// Resumes the queue after a function's answer. If another thread holds `queue`, that thread resumes it, so the
  /// function's thread does not wait.
  func resumeQueue() {
    resumes.store(true, ordering: .sequentiallyConsistent)
    resumeIfAsked()
  }

  private func resumeIfAsked() {
    while resumes.load(ordering: .sequentiallyConsistent) {
      let isServed: Void? = queue.withLockIfAvailable { pending in
        resumes.store(false, ordering: .sequentiallyConsistent)
        service(&pending)
      }
      if isServed == nil { return }
    }
  }

  private func service(_ pending: inout Pending) {
    guard finishParkedWait() else { return }
    var remaining = registers.state.withLock { $0.queue.capacity }
    while remaining > 0, serviceDescriptor(&pending) { remaining -= 1 }
    complete(&pending)
  }

  /// - Returns: false while a parked wait descriptor still waits for functions.
  private func finishParkedWait() -> Bool {
    guard capabilities.deviceTLB else { return true }
    let generation = registers.state.withLock { $0.queue.generation }
    let (mayGoOn, wait) = devices.withLock { devices -> (Bool, InvalidationWait?) in
      guard let parked = devices.parkedWait else { return (true, nil) }
      guard parked.generation != generation || devices.outstanding.isEmpty else { return (false, nil) }
      devices.parkedWait = nil
      // Software does not wait for a queue that it has disabled since.
      return (true, parked.generation == generation ? parked.wait : nil)
    }
    if let wait { finish(wait) }
    return mayGoOn
  }

  /// Reports to software that all descriptors before this one are complete.
  private func finish(_ wait: InvalidationWait) {
    observation.withLock { $0.counters.count(.waits) }
    // A status address outside of RAM is software's error; the write is lost.
    if wait.writesStatus {
      let isStored = memory.storeUInt32(wait.statusData, at: wait.statusAddress)
      trace?.record(
        isStored ? .waitStatus : .waitStatusFailed,
        [.hex("addr", wait.statusAddress), .hex("data", wait.statusData)])
    }
    guard wait.interrupts else { return }
    trace?.record(.waitInterrupt, [])
    var effects = UnitRegisters.Effects()
    registers.state.withLock { $0.completeWait(&effects) }
    registers.send(effects)
  }

  /// - Returns: whether to continue with the next descriptor.
  private func serviceDescriptor(_ pending: inout Pending) -> Bool {
    var effects = UnitRegisters.Effects()
    let fetch = registers.state.withLock { $0.nextFetch(&effects) }
    guard let fetch else {
      registers.send(effects)
      return false
    }
    let descriptor: Descriptor
    do throws(QueueError) {
      let bits = try load(fetch)
      trace?.record(.descriptor, [.number("type", bits.type), .hex("high", bits.high), .hex("low", bits.low)])
      descriptor = try Descriptor.decode(bits, tableMode: fetch.tableMode, capabilities: capabilities)
    } catch {
      trace?.record(.queueError, [.number("error", error.rawValue), .hex("addr", fetch.address)])
      registers.state.withLock { $0.stopQueue(error, generation: fetch.generation, &effects) }
      registers.send(effects)
      return false
    }
    switch descriptor {
    case .invalidate(let invalidation):
      guard send(invalidation) else { return false }
      carryOut(invalidation, &pending)
      registers.state.withLock { $0.advanceQueue(generation: fetch.generation) }
      if pending.invalidations.count >= 4096 { tellObservers(&pending) }
    case .wait(let wait):
      // No request uses the old tables any more when software reads the status.
      complete(&pending)
      if parks(wait, generation: fetch.generation) {
        registers.state.withLock { $0.advanceQueue(generation: fetch.generation) }
        return false
      }
      // The wait is complete before the head moves past it.
      finish(wait)
      registers.state.withLock { $0.advanceQueue(generation: fetch.generation) }
    case .respond(let response, let source):
      // The function repeats its request at once. It must not meet entries that were invalidated before the response.
      complete(&pending)
      deliver(response, to: source)
      registers.state.withLock { $0.advanceQueue(generation: fetch.generation) }
    }
    return true
  }

  /// Parks a wait descriptor while functions have not answered earlier device-TLB invalidations.
  private func parks(_ wait: InvalidationWait, generation: UInt64) -> Bool {
    guard capabilities.deviceTLB else { return false }
    return devices.withLock { devices in
      guard !devices.outstanding.isEmpty else { return false }
      devices.parkedWait = DeviceInvalidations.ParkedWait(wait: wait, generation: generation)
      return true
    }
  }

  private func load(_ fetch: UnitRegisters.Fetch) throws(QueueError) -> DescriptorBits {
    guard let low = memory.loadUInt64(at: fetch.address), let high = memory.loadUInt64(at: fetch.address &+ 8) else {
      throw .descriptorFetch
    }
    guard fetch.isWide else { return DescriptorBits(low: low, high: high) }
    guard let third = memory.loadUInt64(at: fetch.address &+ 16),
      let fourth = memory.loadUInt64(at: fetch.address &+ 24)
    else { throw .descriptorFetch }
    return DescriptorBits(low: low, high: high, upper: third | fourth)
  }

  /// Applies an invalidation to the unit's own caches, and queues it for the observers.
  private func carryOut(_ invalidation: Invalidation, _ pending: inout Pending) {
    trace?.record(invalidation)
    switch invalidation {
    case .interruptEntries(let indices):
      interrupts.invalidate(indices)
      pending.concernsInterrupts = true
    case .deviceTLB, .deviceTLBOfPASID, .translationChanged, .interruptRemappingChanged:
      break
    default:
      ports.withLock { ports in
        for port in ports.all where port.invalidate(invalidation) { pending.append(port) }
      }
    }
    let isObserved = observation.withLock { observation in
      if let counter = invalidation.counter { observation.counters.count(counter) }
      return !observation.observers.isEmpty
    }
    if isObserved { pending.invalidations.append(invalidation) }
  }

  /// Completes the pending invalidations: returns when no request in flight uses the old entries and the observers have
  /// acted. The unit always drains, whether descriptors request it (DR, DW) or not.
  private func complete(_ pending: inout Pending) {
    for port in pending.ports { port.inFlight.drain(parking: parking) }
    pending.ports.removeAll(keepingCapacity: true)
    if pending.concernsInterrupts { interruptsInFlight.drain(parking: parking) }
    pending.concernsInterrupts = false
    // Page requests whose check came before the invalidation, or before a wait descriptor with PD, enter the queue now.
    if capabilities.pageRequests { pageRequestsInFlight.drain(parking: parking) }
    tellObservers(&pending)
  }

  private func tellObservers(_ pending: inout Pending) {
    guard !pending.invalidations.isEmpty else { return }
    let observers = observation.withLock { $0.observers }
    for observer in observers { observer.invalidated(pending.invalidations) }
    pending.invalidations.removeAll(keepingCapacity: true)
  }
}

extension Invalidation {
  /// nil for a change of mode.
  fileprivate var counter: TranslationCounter? {
    switch self {
    case .allContexts, .contextsOfDomain, .contextsOfDevice: .contextInvalidations
    case .allPASIDs, .pasidsOfDomain, .pasid: .pasidCacheInvalidations
    case .allTranslations, .translationsOfDomain, .pagesOfDomain: .iotlbInvalidations
    case .translationsOfPASID, .pagesOfPASID: .pasidIOTLBInvalidations
    case .deviceTLB, .deviceTLBOfPASID: .deviceTLBInvalidations
    case .interruptEntries: .interruptEntryInvalidations
    case .translationChanged, .interruptRemappingChanged: nil
    }
  }
}
