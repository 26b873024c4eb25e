import Hardware

// The back end's requests, on the channel that the front end gave it: vhost-user.rst, "Back-end communication" and
// "IOMMU support".

extension FrontEnd {
  /// Carries out a request of the back end. A request that Nestling does not know, VRING_HOST_NOTIFIER among them, is
  /// refused.
  /// - Returns: the answer, if the back end wants one.
  mutating func receiveRequest(_ message: ReceivedMessage) throws(VhostUserError) -> OutgoingMessage? {
    let header = message.header
    guard !header.flags.contains(.reply) else {
      throw .messageFlags(request: header.request, flags: header.flags.rawValue)
    }
    let isDone = try perform(message)
    guard header.flags.contains(.needReply), backEnd.protocolFeatures.contains(.replyAcknowledgement) else {
      return nil
    }
    let answer = MessageHeader(request: header.request, flags: [.version, .reply], size: 8)
    return OutgoingMessage(bytes: answer.bytes + [UInt8](littleEndian: UInt64(isDone ? 0 : 1)), descriptors: [])
  }

  private mutating func perform(_ message: ReceivedMessage) throws(VhostUserError) -> Bool {
    let header = message.header
    switch BackEndRequest(rawValue: header.request) {
    case .configurationChange:
      guard header.size == 0 else { throw .messageSize(request: header.request, size: header.size) }
      guard backEnd.protocolFeatures.contains(.configuration) else { return false }
      hasStaleConfiguration = true
      return true
    case .iotlbMessage:
      guard header.size == IOTLBMessage.size else {
        throw .messageSize(request: header.request, size: header.size)
      }
      guard let miss = IOTLBMessage(message.payload), miss.type == .miss, 1...3 ~= miss.permissions,
        sessionFeatures & FeatureBits.accessPlatform != 0
      else { return false }
      notices.append(.translationMiss(address: miss.address, permissions: miss.permissions))
      return true
    case nil: return false
    }
  }

  // MARK: The device IOTLB

  /// Whether the back end may hold translations. One that does not acknowledge an invalidation gets no translation.
  private var holdsTranslations: Bool {
    phase == .ready && session != .none && sessionFeatures & FeatureBits.accessPlatform != 0
      && backEnd.protocolFeatures.contains(.replyAcknowledgement)
  }

  /// Sends a translation. It arrives before every invalidation that is sent later.
  mutating func update(_ message: IOTLBMessage) {
    if holdsTranslations { tell(.iotlbMessage, message.bytes) }
  }

  /// Sends invalidations.
  /// - Parameter onAnswer: called as a notice when the back end has carried out all of them, or has lost its connection.
  /// - Returns: false if the back end holds no translation; `onAnswer` is not called then.
  mutating func invalidate(_ messages: [IOTLBMessage], onAnswer: @escaping @Sendable () -> Void) -> Bool {
    guard holdsTranslations, let last = messages.last else { return false }
    for message in messages.dropLast() { tell(.iotlbMessage, message.bytes) }
    tell(.iotlbMessage, last.bytes, onAnswer: onAnswer)
    return true
  }
}
