import Hardware

// The execution of the invalidation queue (VT-d 6.5.2): the unit fetches, decodes and executes descriptors on the
// thread that rings the doorbell, or on the thread of a function whose answer resumes the queue.

extension RemappingUnit {
  /// Executes descriptors until the queue is empty, a descriptor cannot be completed now, or one lap of the queue is
  /// complete. A vCPU that adds descriptors meanwhile rings the doorbell, and then executes them itself.
  func serviceQueue() {
    queue.withLock { service(&$0) }
    resumeIfAsked()
  }

  /// Resumes the queue after a function's answer. If another thread holds `queue`, that thread resumes it, so the
  /// function's thread does not wait.
  func resumeQueue() {
    resumes.store(true, ordering: .sequentiallyConsistent)
    resumeIfAsked()
  }

  func resumeIfAsked() {
    while resumes.load(ordering: .sequentiallyConsistent) {
      let isServed: Void? = queue.withLockIfAvailable { pending in
        resumes.store(false, ordering: .sequentiallyConsistent)
        service(&pending)
      }
      if isServed == nil { return }
    }
  }

  private func service(_ pending: inout PendingInvalidations) {
    guard finishParked() else { return }
    var effects = UnitRegisters.Effects()
    var (next, remaining) = registers.state.withLock { ($0.nextFetch(&effects), $0.queue.capacity) }
    while let fetch = next {
      let result = execute(fetch, &pending)
      remaining -= 1
      // One lock for both, because this loop is hot: the head moves, and the unit fetches the next descriptor.
      next = registers.state.withLock { registers in
        guard result != .stopped else { return nil }
        registers.advanceQueue(generation: fetch.generation)
        return result == .executed && remaining > 0 ? registers.nextFetch(&effects) : nil
      }
    }
    registers.send(effects)
    complete(&pending)
  }

  /// Sends the invalidations that waited for their remotes, and finishes the parked completions that are ready.
  /// - Returns: false while a parked wait descriptor still waits.
  private func finishParked() -> Bool {
    guard parksCompletions else { return true }
    sendQueued()
    let generation = registers.state.withLock { $0.queue.generation }
    let (ready, isBlocked) = devices.withLock { devices in
      devices.outstanding.dropWait(except: generation)
      return (devices.outstanding.takeReady(), devices.outstanding.hasParkedWait)
    }
    for completion in ready {
      switch completion {
      case .wait(let wait, _): finish(wait)
      case .registers(let completion): finish(completion)
      }
    }
    return !isBlocked
  }

  /// Reports to software that register-based commands are complete.
  func finish(_ completion: RegisterCompletion) {
    registers.state.withLock { registers in
      if completion.globalCommands > 0 { registers.completeGlobalCommands(completion.globalCommands) }
      if let command = completion.context { registers.complete(command) }
      if let command = completion.iotlb { registers.complete(command) }
    }
  }

  /// Reports to software that all descriptors before this one are complete.
  private func finish(_ wait: InvalidationWait) {
    ports.withLock { $0.counters.count(.waits) }
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

  private enum ExecutionResult {
    /// The head moves past the descriptor, and the next one follows.
    case executed
    /// The head moves past the descriptor, a wait that is parked. The next descriptor must wait for it.
    case parked
    /// The head stays at the descriptor.
    case stopped
  }

  private func execute(_ fetch: UnitRegisters.Fetch, _ pending: inout PendingInvalidations) -> ExecutionResult {
    let descriptor: Descriptor
    do throws(QueueError) {
      let bits = try load(fetch)
      trace?.record(.descriptor, [.number("type", bits.type), .hex("high", bits.high), .hex("low", bits.low)])
      descriptor = try Descriptor.decode(bits, tableMode: fetch.tableMode, capabilities: capabilities)
    } catch {
      trace?.record(.queueError, [.number("error", error.rawValue), .hex("addr", fetch.address)])
      var effects = UnitRegisters.Effects()
      registers.state.withLock { $0.stopQueue(error, generation: fetch.generation, &effects) }
      registers.send(effects)
      return .stopped
    }
    switch descriptor {
    case .invalidate(let invalidation):
      guard send(invalidation) else { return .stopped }
      apply(invalidation, &pending)
      if pending.isFull { notifyObservers(&pending) }
    case .wait(let wait):
      // When software reads the status, no request may use the old tables any more.
      complete(&pending)
      if park(.wait(wait, generation: fetch.generation)) { return .parked }
      // The wait is complete before the head moves past it.
      finish(wait)
    case .respond(let response, let source):
      // The function repeats its request at once. The repetition must not use entries invalidated before the response.
      complete(&pending)
      deliver(response, to: source)
    }
    return .executed
  }

  /// Parks a completion while functions or remotes have not completed earlier invalidations.
  /// - Returns: whether it is parked.
  func park(_ completion: Completion) -> Bool {
    parksCompletions && devices.withLock { $0.outstanding.park(completion) }
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
}
