import Hardware

// The connections of remote IOTLBs, and the way of an invalidation to a remote and back.

extension RemappingUnit {
  public func connect(_ remote: any RemoteIOTLB, for requester: Requester) -> (any RemoteDMAPort)? {
    let port = RemappedRemotePort(remote, unit: self, requester: requester)
    hasRemotes.store(true, ordering: .relaxed)
    ports.withLock { ports in
      port.set(ports.mode)
      ports.remotes.append(port)
    }
    return port
  }

  /// Removes a disconnected port, and ends its invalidations.
  func remove(_ port: RemappedRemotePort) {
    ports.withLock { ports in
      guard let index = ports.remotes.firstIndex(where: { $0 === port }) else { return }
      ports.counters += port.counters
      ports.remotes.remove(at: index)
    }
    let resumes = devices.withLock { devices in
      devices.outstanding.removeAll { $0.receiver.isRemote(port) }
      return devices.mayResume
    }
    if resumes { resumeQueue() }
  }

  /// Whether completions may have to wait for functions or remotes.
  var parksCompletions: Bool { capabilities.deviceTLB || hasRemotes.load(ordering: .relaxed) }

  /// Sends a remote its queued ranges, unless it has not completed an earlier invalidation. Then the ranges follow
  /// after its completion.
  func send(to port: RemappedRemotePort) {
    if let number = devices.withLock({ $0.outstanding.begin(port) }) { send(number, to: port) }
  }

  /// Sends the invalidations whose remotes have completed the earlier one.
  func sendQueued() {
    while let (number, port) = devices.withLock({ $0.outstanding.nextToSend() }) { send(number, to: port) }
  }

  private func send(_ number: UInt64, to port: RemappedRemotePort) {
    switch port.send(number: number) {
    case .done: devices.withLock { _ = $0.outstanding.end(number) }
    case .later:
      guard let startsTimer = devices.withLock({ $0.outstanding.await(number) }) else { return }
      if let deviceTimer {
        if startsTimer { startTimer(deviceTimer) }
      } else {
        port.timedOut()
      }
    }
  }

  /// Handles the completion of an invalidation by its remote.
  func complete(_ number: UInt64, of port: RemappedRemotePort) {
    let resumes = devices.withLock { devices in
      guard devices.outstanding.isOutstanding(number, of: port) else { return false }
      let wasAwaited = devices.outstanding.end(number) == true
      return wasAwaited && devices.mayResume
    }
    if resumes { resumeQueue() }
  }
}
