import Hardware

// The first part of each connection, up to the configuration: vhost-user.rst, "Communication".

extension FrontEnd {
  /// Begins the handshake on a new connection.
  /// - Parameter channel: the back end's end of the channel for its requests.
  mutating func connect(channel: SharedDescriptor) {
    phase = .handshake
    backEnd = BackEnd(configuration: backEnd.configuration)
    self.channel = channel
    ask(.getFeatures)
  }

  mutating func acceptProtocolFeatures(_ value: UInt64) throws(VhostUserError) {
    let offered = ProtocolFeatures(rawValue: value)
    let missing = profile.requiredProtocolFeatures.subtracting(offered)
    if !missing.isEmpty { throw .lacksProtocolFeatures(missing) }
    var accepted = offered.intersection(DeviceProfile.understood)
    if profile.resumesWithoutInflight { accepted.remove(.inflight) }
    // The acknowledgements begin with the next request.
    tell(.setProtocolFeatures, [UInt8](littleEndian: accepted.rawValue))
    backEnd.protocolFeatures = accepted
  }

  mutating func acceptQueueCount(_ value: UInt64) throws(VhostUserError) {
    guard value >= UInt64(profile.neededReport) else {
      throw .tooFewQueues(available: value, needed: profile.neededReport)
    }
    backEnd.queueCount = Int(clamping: value)
  }

  mutating func acceptConfiguration(_ payload: [UInt8]) throws(VhostUserError) {
    let offset = payload.load(UInt32.self, at: 0)
    let size = payload.load(UInt32.self, at: 4)
    guard offset == 0 else { throw .reply(.getConfig, value: UInt64(offset)) }
    guard Int(size) == profile.configurationSize else { throw .reply(.getConfig, value: UInt64(size)) }
    let new = Array(payload[ConfigurationPayload.headerSize...])
    defer { backEnd.configuration = new }
    if new != backEnd.configuration, !backEnd.configuration.isEmpty { notices.append(.configurationChanged(new)) }
  }

  mutating func proceedWithHandshake(after request: FrontEndRequest) throws(VhostUserError) {
    switch request {
    case .getFeatures:
      let missing = profile.requiredFeatures & ~backEnd.features
      if missing != 0 { throw .lacksFeatures(missing) }
      if backEnd.features & FeatureBits.protocolFeatures != 0 { return ask(.getProtocolFeatures) }
      if !profile.requiredProtocolFeatures.isEmpty { throw .lacksProtocolFeatures(profile.requiredProtocolFeatures) }
      try introduce()
    case .getProtocolFeatures: try introduce()
    default: break
    }
    guard isSettled else { return }
    phase = .ready
    notices.append(.ready(backEnd))
  }

  /// Sends the part of the handshake that depends on the protocol features.
  private mutating func introduce() throws(VhostUserError) {
    let accepted = backEnd.protocolFeatures
    if accepted.contains(.multiqueue) {
      ask(.getQueueNum)
    } else {
      try acceptQueueCount(UInt64(profile.queueCountWithoutReport))
    }
    tell(.setOwner)
    if accepted.contains(.backEndRequests), let channel { tell(.setBackendReqFD, [], [channel]) }
    channel = nil
    if accepted.contains(.configuration), profile.configurationSize > 0 { readConfiguration() }
  }

  mutating func readConfiguration() {
    let bytes = [UInt8](repeating: 0, count: profile.configurationSize)
    ask(.getConfig, ConfigurationPayload(offset: 0, bytes: bytes).payload)
  }
}
