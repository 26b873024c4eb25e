import Linux

/// The events of a running machine, all handled on the machine's thread: steps 3 and 4 of `RunningMachine`.
extension RunningMachine {
  /// Carries out step 3.
  private func load() throws(StartError) {
    try placeResources()
    if let image { try processors.reset(entry: try image.load(into: board.memory, layout: board.layout)) }
  }

  private func placeResources() throws(StartError) {
    // A qtest client sets the BARs itself, as it does with QEMU without firmware.
    guard configuration.accelerator != .qtest else { return }
    try mapError(try board.placeResources(), StartError.placement)
  }

  /// Carries out steps 3 and 4. Must be called at most once.
  public func run() throws(StartError) -> Ending {
    do {
      try load()
      try begin()
    } catch {
      stop()
      throw error
    }
    qtest?.resume()
    while true {
      let ready = Poll.readable([events.rawValue, signals.rawValue])
      if ready[1], signals.take() != nil { return end(.quit, .signal) }
      guard ready[0], let event = events.take() else { continue }
      if let ending = act(on: event) { return ending }
      qtest?.resume()
    }
  }

  private func begin() throws(StartError) {
    // The netdevs are open since step 2, but the listeners of the controller were added after it.
    board.networks.listen { [weak controller] in controller?.notify($0) }
    serial?.connect(board.serial)
    if !configuration.startsPaused {
      controller.set(.running)
      try mapError(try processors.start(), StartError.system)
    }
    // Start the chardevs last, so that no client's request arrives before the machine has started.
    try mapError(try chardevs.start(), StartError.system)
  }

  /// Handles an event.
  /// - Returns: nil if the machine continues.
  private func act(on event: MachineEvent) -> Ending? {
    switch event {
    case .shutdown: return end(.shutdown, .guestShutdown)
    case .debugExit(let status): return end(.debugExit(status: status), .guestShutdown)
    case .crashed(let crash): return end(.crashed(crash), .guestCrash)
    case .quit(let cause): return end(.quit, cause)
    case .tripleFault(let processor, let instructionPointer):
      controller.notify(.tripleFault(processor: processor, instructionPointer: instructionPointer))
      return resetByGuest()
    case .reset: return resetByGuest()
    case .hostReset: return reset(.monitorReset)
    case .request(let pending): return carryOut(pending)
    case .deviceError:
      pause(as: .internalError)
      return nil
    case .hostRequest(let identity, let patience): hotplug.takeBack(identity, patience: patience)
    case .surpriseRemoval(let identity): hotplug.pull(identity)
    case .slotReleased(let port): hotplug.slotReleased(port)
    case .left(let identities): hotplug.takeDown(identities)
    case .continuation(let continuation): continuation.run()
    }
    return nil
  }

  private func resetByGuest() -> Ending? {
    rebootAction == .reset ? reset(.guestReset) : end(.shutdown, .guestReset)
  }

  private func reset(_ cause: MachineCause) -> Ending? {
    processors.stop()
    qtest?.pause()
    // The reset discards the guest's other events, but not a request to quit.
    if case .quit(let cause)? = events.forgetGuestEvents() { return end(.quit, cause) }
    controller.notify(.reset(cause))
    board.completeRemovals()
    board.reset()
    hotplug.guestWasReset()
    do throws(StartError) {
      // A booted kernel starts with cleared RAM. For a qtest client RAM keeps its content, as in QEMU.
      if image != nil { try mapError(try board.memory.clear(), StartError.system) }
      try load()
      if controller.status == .running { try mapError(try processors.start(), StartError.system) }
    } catch {
      return end(.failed(error, isReset: true), .guestCrash)
    }
    // As in QEMU: the reset clears the error, and the machine waits for `cont`.
    if controller.status == .internalError { controller.set(.prelaunch) }
    return nil
  }

  /// Carries out a request and answers it.
  /// - Returns: nil if the machine continues, even if the request failed.
  private func carryOut(_ pending: PendingRequest) -> Ending? {
    do throws(RequestError) {
      switch pending.request {
      case .pause: pause()
      case .resume:
        if let failure = try resume() {
          pending.answer(.ended)
          return end(.failed(failure, isReset: false), .guestCrash)
        }
      case .addDevice(let description):
        hotplug.add(description, answering: pending)
        return nil
      case .removeDevice(let name, let isSurprise): try hotplug.remove(name, isSurprise: isSurprise)
      case .addNode(let node): try board.add(node)
      case .removeNode(let id): try board.removeNode(id)
      case .addObject(let object): try board.add(object)
      case .removeObject(let id): try board.removeObject(id)
      case .setRebootAction(let action): rebootAction = action
      // MachineController has carried these out on the caller's thread, and does not post them.
      case .resizeNode, .addNetdev, .removeNetdev, .setLink: break
      }
      // Answer after the notices: a QMP event comes before the answer to the command that caused it.
      pending.answer()
    } catch {
      pending.answer(error)
    }
    return nil
  }

  private func pause(as status: MachineStatus = .paused) {
    processors.stop()
    guard controller.status == .running else { return }
    controller.set(status)
    controller.notify(.paused)
  }

  /// - Returns: the error that ends the machine; nil if the CPUs run.
  private func resume() throws(RequestError) -> StartError? {
    if controller.status == .running { return nil }
    if controller.status == .internalError { throw .needsReset }
    do throws(StartError) {
      if controller.status == .prelaunch {
        // Devices may have been added and removed since the guest was loaded.
        board.slots.prepare()
        try placeResources()
      }
      controller.set(.running)
      controller.notify(.resumed)
      try mapError(try processors.start(), StartError.system)
      return nil
    } catch {
      return error
    }
  }

  private func end(_ ending: Ending, _ cause: MachineCause) -> Ending {
    onEnding(ending.exitStatus)
    controller.set(.shutdown)
    // Answer the pending requests before the steps below, some of which may block.
    events.close()
    processors.stop()
    // Notify while the monitors still have their connections.
    controller.notify(.shutdown(cause))
    stop()
    return ending
  }
}
