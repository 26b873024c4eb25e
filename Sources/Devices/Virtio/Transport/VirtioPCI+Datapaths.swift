import Hardware
import PCI

/// One queue's state between the transport and a datapath.
enum QueueHandover: Sendable {
  /// The queue does not run, or the device's own `process` serves it.
  case none
  case running(DatapathLoan)
  /// Bus Master Enable is clear. The queue continues at the index.
  case suspended(UInt16)
  /// The datapath has not stopped yet. The queue continues afterwards, unless it was reset.
  case stopping(continues: Bool)
}

/// A datapath that serves a queue.
struct DatapathLoan: Sendable {
  let datapath: any QueueDatapath
  let notifiers: QueueNotifiers
  /// The call notifier that the datapath received last. It is kept, so that no other one gets its descriptor.
  var call: Notifier?
}

/// The service of queues by datapaths. All functions with `registers` are called with the transport's lock held.
extension VirtioPCI {
  /// Starts a queue that the driver has enabled, from the beginning of its ring.
  func start(_ index: Int, _ registers: inout Registers) {
    // The queue before may have failed. If a former stop is pending, its completion starts the queue.
    if registers.common.isLive, case .none = registers.handovers[index] { begin(index, at: 0, &registers) }
  }

  private func begin(_ index: Int, at start: UInt16, _ registers: inout Registers) {
    let slot = slots[index]
    guard let datapath = device.datapath(forQueue: index), let notifiers = slot.lend() else {
      if case .suspended = registers.handovers[index] { takeBack(index, &registers) }
      return beginLocally(index, at: start, &registers)
    }
    guard function.requester.busMasterEnable else {
      registers.handovers[index] = .suspended(start)
      return slot.startLent(session: registers.session)
    }
    let session = registers.session
    let call = callNotifier(of: slot, notifiers)
    let queue = DatapathQueue(
      index: index, features: registers.common.accepted, layout: registers.common.queues[index].layout,
      usesTranslation: usesTranslation, startIndex: start, kick: notifiers.kick, call: call,
      connect: { [environment = function.environment] in environment.connect($0) }
    ) { [weak self] in
      self?.fail(session: session)
    }
    // First, because the datapath may signal a used buffer at once.
    slot.startLent(session: session)
    do {
      try datapath.start(queue)
      registers.handovers[index] = .running(
        DatapathLoan(datapath: datapath, notifiers: notifiers, call: call))
      // For chains that were available before.
      slot.wake()
    } catch {
      takeBack(index, &registers)
      switch error {
      case .local: beginLocally(index, at: start, &registers)
      case .failed: fail(&registers)
      }
    }
  }

  private func beginLocally(_ index: Int, at start: UInt16, _ registers: inout Registers) {
    // The own service does not know which chains a datapath has used out of order.
    guard start == 0 else { return fail(&registers) }
    let queue = VirtQueue(
      layout: registers.common.queues[index].layout, features: registers.common.accepted, port: port,
      owner: slots[index])
    slots[index].start(queue, session: registers.session)
  }

  /// Ends the loan of a queue.
  private func takeBack(_ index: Int, _ registers: inout Registers) {
    registers.handovers[index] = .none
    registers.common.queues[index].isResetting = false
    slots[index].stop()
    slots[index].reclaim()
  }

  // MARK: Stop

  /// Ends a queue's service, for a reset of the queue or the device. Waits for the own service's request in flight, but
  /// not for a datapath.
  func end(_ index: Int, _ registers: inout Registers) {
    slots[index].stop()
    stopDatapath(index, continues: false, &registers)
    if case .suspended = registers.handovers[index] { takeBack(index, &registers) }
    if case .stopping = registers.handovers[index] {
      registers.handovers[index] = .stopping(continues: false)
      registers.common.queues[index].isResetting = true
    }
  }

  /// Makes the datapath that serves a queue stop.
  /// - Parameter continues: whether the queue continues later at the same place.
  func stopDatapath(_ index: Int, continues: Bool, _ registers: inout Registers) {
    guard case .running(let loan) = registers.handovers[index] else { return }
    let outcome = loan.datapath.stop(queue: index) { [weak self] next in self?.stopped(index, at: next) }
    switch outcome {
    case .pending: registers.handovers[index] = .stopping(continues: continues)
    case .stopped(let next):
      if continues, let next {
        registers.handovers[index] = .suspended(next)
      } else {
        takeBack(index, &registers)
        if continues { fail(&registers) }
      }
    }
  }

  /// Completes a pending stop.
  private func stopped(_ index: Int, at next: UInt16?) {
    withRegisters { registers in
      guard case .stopping(let continues) = registers.handovers[index] else { return }
      if continues, let next {
        registers.handovers[index] = .suspended(next)
        resume(index, &registers)
      } else {
        takeBack(index, &registers)
        if continues { return fail(&registers) }
        // The driver may have enabled the queue again without waiting for the end of the reset.
        if registers.common.isLive, registers.common.queues[index].enabled, !registers.hasEnded {
          start(index, &registers)
        }
      }
    }
    for slot in slots where slot.isRunning { slot.wake() }
  }

  // MARK: Changes while the driver runs

  /// Suspends or resumes the datapaths after a possible change of Bus Master Enable.
  func followBusMaster() {
    withRegisters { registers in
      for index in slots.indices {
        if function.requester.busMasterEnable {
          resume(index, &registers)
        } else {
          stopDatapath(index, continues: true, &registers)
        }
      }
    }
  }

  private func resume(_ index: Int, _ registers: inout Registers) {
    guard case .suspended(let next) = registers.handovers[index], function.requester.busMasterEnable,
      registers.common.isLive, !registers.hasEnded
    else { return }
    begin(index, at: next, &registers)
  }

  /// Replaces the datapaths' call notifiers after a possible change of MSI-X Enable.
  func followMessages() {
    withRegisters { registers in
      for index in slots.indices { updateCall(index, &registers) }
    }
  }

  /// Replaces the call notifier of the datapath that serves a queue.
  func updateCall(_ index: Int, _ registers: inout Registers) {
    guard case .running(var loan) = registers.handovers[index] else { return }
    let call = callNotifier(of: slots[index], loan.notifiers)
    guard call?.descriptor != loan.call?.descriptor else { return }
    loan.call = call
    registers.handovers[index] = .running(loan)
    loan.datapath.setCall(call, queue: index)
  }

  /// Returns the notifier that interrupts the driver: the eventfd of the queue's vector, if there is one. Otherwise the
  /// queue's worker sends the interrupt.
  private func callNotifier(of slot: VirtioQueueSlot, _ notifiers: QueueNotifiers) -> Notifier? {
    guard let msix = function.msix, msix.isEnabled else { return notifiers.call }
    let vector = slot.interruptVector
    return vector == CommonConfiguration.noVector ? nil : msix.notifier(of: Int(vector)) ?? notifiers.call
  }

  /// Stops everything after an error of the device or its driver, until the driver resets the device.
  func fail(_ registers: inout Registers) {
    for index in slots.indices {
      slots[index].halt()
      stopDatapath(index, continues: false, &registers)
    }
    if registers.common.fail() { registers.mustNotify = true }
  }

  func fail(session: UInt64) {
    withRegisters { registers in
      if registers.session == session { fail(&registers) }
    }
  }
}
