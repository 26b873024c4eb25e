import Hardware

// The session and its rings: vhost-user.rst, "Ring states" and "Inflight I/O tracking".

/// The answer to a request to stop a queue.
public enum RingStop: Hashable, Sendable {
  /// The back end does not serve the queue. The next available index; nil if it is unknown.
  case stopped(UInt16?)
  /// The completion follows.
  case pending
}

extension FrontEnd {
  /// Device status bits: virtio 1.2, section 2.1.
  private enum Status {
    static let acknowledgeAndDriver: UInt64 = 3
    static let driverOK: UInt64 = 4
    static let featuresOK: UInt64 = 8
  }

  // MARK: The transport's side

  /// - Parameter features: those that the driver has accepted.
  /// - Returns: false if there is no back end and none will come.
  mutating func start(queue index: Int, _ ring: Ring, features: UInt64) -> Bool {
    guard queues.indices.contains(index), phase != .disconnected || reconnects else { return false }
    driverFeatures = features
    queues[index].wanted = ring
    queues[index].wasInterrupted = false
    return true
  }

  mutating func stop(queue index: Int, _ completion: @escaping @Sendable (UInt16?) -> Void) -> RingStop {
    guard queues.indices.contains(index) else { return .stopped(nil) }
    let wanted = queues[index].wanted
    let wasInterrupted = queues[index].wasInterrupted
    queues[index].wanted = nil
    queues[index].wasInterrupted = false
    if queues[index].phase == .stopped { return .stopped(wasInterrupted ? nil : wanted?.startIndex) }
    if let former = queues[index].onStop { notices.append(.call { former(nil) }) }
    queues[index].onStop = completion
    return .pending
  }

  mutating func setCall(_ call: SharedDescriptor?, queue index: Int) {
    guard queues.indices.contains(index), queues[index].wanted != nil else { return }
    queues[index].wanted?.call = call
    queues[index].hasStaleCall = true
  }

  /// Sets whether the back end may process a queue: it ignores a disabled one, or drops its buffers.
  mutating func setEnabled(_ isEnabled: Bool, queue index: Int) {
    guard queues.indices.contains(index), queues[index].isEnabled != isEnabled else { return }
    queues[index].isEnabled = isEnabled
    queues[index].hasStaleEnable = true
  }

  /// Records that the driver has reset the device. The back end gets the reset when its queues have stopped.
  mutating func reset() {
    needsReset = session != .none
    configurationWrite = nil
  }

  /// Records a driver's write to the device configuration; a later one replaces one that is not sent yet.
  mutating func writeConfiguration(_ write: ConfigurationPayload) {
    if phase == .ready, backEnd.protocolFeatures.contains(.configuration) { configurationWrite = write }
  }

  /// The queues whose index must be read from the guest's memory before they continue.
  var interrupted: [(index: Int, usedIndex: @Sendable () -> UInt16?)] {
    guard phase == .ready else { return [] }
    return queues.indices.compactMap { index in
      guard queues[index].wasInterrupted, let ring = queues[index].wanted else { return nil }
      return (index, ring.usedIndex)
    }
  }

  /// Sets the index of an interrupted queue. The back end takes the requests in flight from the inflight region, so it
  /// continues with the first one that is not used.
  mutating func resume(queue index: Int, at used: UInt16?) {
    guard queues[index].wasInterrupted, let ring = queues[index].wanted else { return }
    queues[index].wasInterrupted = false
    if let used {
      queues[index].wanted?.startIndex = used
    } else {
      fail(index, ring)
    }
  }

  // MARK: The back end's side

  /// Makes the messages that bring the back end to the wanted state. Called when all earlier output has been sent.
  ///
  /// A driver may reset the device faster than the back end acknowledges it, so nothing is sent without room.
  mutating func proceed() {
    guard phase == .ready, hasRoom else { return }
    if hasStaleConfiguration, !isAwaiting(.getConfig), backEnd.protocolFeatures.contains(.configuration) {
      hasStaleConfiguration = false
      if profile.configurationSize > 0 { readConfiguration() }
    }
    if let write = configurationWrite, !isAwaiting(.setConfig) {
      configurationWrite = nil
      tell(.setConfig, write.payload)
    }
    for index in queues.indices where hasRoom { endIfUnwanted(index) }
    let isIdle = queues.allSatisfy { $0.phase == .stopped }
    if needsReset, isIdle { resetBackEnd() }
    guard queues.contains(where: { $0.phase == .stopped && $0.wanted != nil && !$0.wasInterrupted }) else { return }
    if needsReset { return }
    if session == .begun, sessionFeatures != driverFeatures, isIdle { session = .none }
    if session == .none { begin() }
    guard session == .begun else { return }
    for index in queues.indices where hasRoom { startIfWanted(index) }
    if !hasDriverOK, backEnd.protocolFeatures.contains(.status) {
      let status = Status.acknowledgeAndDriver | Status.featuresOK | Status.driverOK
      tell(.setStatus, [UInt8](littleEndian: status))
    }
    hasDriverOK = true
  }

  private mutating func endIfUnwanted(_ index: Int) {
    guard queues[index].phase == .running else { return }
    guard let ring = queues[index].wanted, queues[index].onStop == nil else {
      queues[index].phase = .stopping
      let state = VringState(index: UInt32(index), number: 0)
      return ask(.getVringBase, state.bytes, index: UInt32(index))
    }
    if queues[index].hasStaleCall, !isAwaiting(.setVringCall) {
      queues[index].hasStaleCall = false
      set(.setVringCall, ring.call, of: index)
    }
    if queues[index].hasStaleEnable, !isAwaiting(.setVringEnable) {
      queues[index].hasStaleEnable = false
      enable(index)
    }
  }

  private mutating func enable(_ index: Int) {
    // Without the feature, a ring starts enabled, and stays so.
    guard backEnd.features & FeatureBits.protocolFeatures != 0 else { return }
    let state = VringState(index: UInt32(index), number: queues[index].isEnabled ? 1 : 0)
    tell(.setVringEnable, state.bytes)
  }

  private mutating func resetBackEnd() {
    needsReset = false
    session = .none
    hasDriverOK = false
    inflight = nil
    if backEnd.protocolFeatures.contains(.status) {
      tell(.setStatus, [UInt8](littleEndian: UInt64(0)))
    } else if backEnd.protocolFeatures.contains(.resetDevice) {
      tell(.resetDevice)
    }
  }

  /// Begins a session: what the back end needs before its first ring.
  private mutating func begin() {
    let hasStatus = backEnd.protocolFeatures.contains(.status)
    if hasStatus { tell(.setStatus, [UInt8](littleEndian: Status.acknowledgeAndDriver)) }
    let features = driverFeatures & backEnd.features | backEnd.features & FeatureBits.protocolFeatures
    tell(.setFeatures, [UInt8](littleEndian: features))
    sessionFeatures = driverFeatures
    hasDriverOK = false
    if hasStatus {
      tell(.setStatus, [UInt8](littleEndian: Status.acknowledgeAndDriver | Status.featuresOK))
      ask(.getStatus)
    }
    tell(.setMemTable, MemoryRegion.table(profile.memory), profile.memory.map(\.file))
    if sessionFeatures & FeatureBits.accessPlatform != 0 {
      // Between two sessions it received no invalidations.
      if mayHoldTranslations {
        tell(.iotlbMessage, IOTLBMessage(.invalidate, address: 0, count: .max).bytes)
      }
      mayHoldTranslations = true
    }
    session = .begun
    guard backEnd.protocolFeatures.contains(.inflight) else { return }
    if let inflight { return tell(.setInflightFD, inflight.description.bytes, [inflight.file]) }
    session = .awaitsInflight
    let wanted = InflightDescription(queueCount: UInt16(profile.queueCount), queueSize: profile.queueSize)
    ask(.getInflightFD, wanted.bytes)
  }

  mutating func acceptInflight(
    _ description: InflightDescription, _ descriptors: [SharedDescriptor]
  ) throws(VhostUserError) {
    // A region of size zero would be a back end that tracks nothing.
    guard description.size > 0, let file = descriptors.first else {
      throw .reply(.getInflightFD, value: description.size)
    }
    var description = description
    description.queueCount = UInt16(profile.queueCount)
    description.queueSize = profile.queueSize
    inflight = Inflight(description: description, file: file)
    tell(.setInflightFD, description.bytes, [file])
    if session == .awaitsInflight { session = .begun }
  }

  mutating func acceptStatus(_ value: UInt64) throws(VhostUserError) {
    if value & Status.featuresOK == 0 { throw .reply(.getStatus, value: value) }
  }

  private mutating func startIfWanted(_ index: Int) {
    guard queues[index].phase == .stopped, !queues[index].wasInterrupted, let ring = queues[index].wanted else {
      return
    }
    queues[index].phase = .running
    queues[index].hasStaleCall = false
    queues[index].hasStaleEnable = false
    let number = UInt32(index)
    tell(.setVringNum, VringState(index: number, number: UInt32(ring.size)).bytes)
    tell(.setVringBase, VringState(index: number, number: UInt32(ring.startIndex)).bytes)
    let addresses = VringAddresses(
      index: number, descriptorArea: ring.descriptorArea, deviceArea: ring.deviceArea, driverArea: ring.driverArea)
    tell(.setVringAddr, addresses.bytes)
    set(.setVringCall, ring.call, of: index)
    set(.setVringKick, ring.kick, of: index)
    enable(index)
  }

  private mutating func set(_ request: FrontEndRequest, _ descriptor: SharedDescriptor?, of index: Int) {
    let value = UInt64(index) | (descriptor == nil ? VringDescriptor.none : 0)
    tell(request, [UInt8](littleEndian: value), descriptor.map { [$0] } ?? [])
  }

  mutating func acceptBase(_ state: VringState, of index: UInt32) throws(VhostUserError) {
    guard state.index == index, let base = UInt16(exactly: state.number) else {
      throw .reply(.getVringBase, value: UInt64(state.index) << 32 | UInt64(state.number))
    }
    let index = Int(index)
    queues[index].phase = .stopped
    if let onStop = queues[index].onStop {
      queues[index].onStop = nil
      notices.append(.call { onStop(base) })
    }
  }
}
