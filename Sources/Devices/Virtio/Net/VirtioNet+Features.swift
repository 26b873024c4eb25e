// What a network device offers, and which offloads follow from the negotiated features: virtio 1.2, section 5.1.3.

extension VirtioNet {
  /// The feature bit requirements of 5.1.3.1.
  static let requirements: [VirtioFeatureRequirement] = [
    .init(.netGuestTSO4, requiresAnyOf: .netGuestChecksum),
    .init(.netGuestTSO6, requiresAnyOf: .netGuestChecksum),
    .init(.netGuestECN, requiresAnyOf: [.netGuestTSO4, .netGuestTSO6]),
    .init(.netGuestUFO, requiresAnyOf: .netGuestChecksum),
    .init(.netGuestUSO4, requiresAnyOf: .netGuestChecksum),
    .init(.netGuestUSO6, requiresAnyOf: .netGuestChecksum),
    .init(.netHostTSO4, requiresAnyOf: .netChecksum),
    .init(.netHostTSO6, requiresAnyOf: .netChecksum),
    .init(.netHostECN, requiresAnyOf: [.netHostTSO4, .netHostTSO6]),
    .init(.netHostUFO, requiresAnyOf: .netChecksum),
    .init(.netHostUSO, requiresAnyOf: .netChecksum),
    .init(.netControlReceive, requiresAnyOf: .netControlQueue),
    .init(.netControlVLAN, requiresAnyOf: .netControlQueue),
    .init(.netGuestAnnounce, requiresAnyOf: .netControlQueue),
    .init(.netMultiqueue, requiresAnyOf: .netControlQueue),
    .init(.netControlMAC, requiresAnyOf: .netControlQueue),
  ]

  /// Further requirements of what the device offers: without the others the feature has no effect. A driver may accept
  /// it without them.
  private static let offerRequirements: [VirtioFeatureRequirement] = [
    .init(.netControlReceiveExtra, requiresAnyOf: .netControlReceive),
    .init(.netControlGuestOffloads, requiresAnyOf: .netControlQueue),
    .init(.netControlGuestOffloads, requiresAnyOf: .netGuestChecksum),
    .init(.netGuestAnnounce, requiresAnyOf: .netStatus),
  ]

  /// The features that change what the server of the rings does.
  public static let ringFeatures = (NetworkOffloads.sendFeatures + NetworkOffloads.receiveFeatures).reduce(
    into: [.netMergeBuffers, .netMultiqueue] as VirtioFeatures
  ) { $0.insert($1.feature) }

  /// The features that a device offers with these options, on a backend with these capabilities.
  static func offered(_ parameters: VirtioNetParameters, _ capabilities: NetworkCapabilities) -> VirtioFeatures {
    var features = parameters.features
    for (feature, offloads) in NetworkOffloads.sendFeatures where !capabilities.sends.isSuperset(of: offloads) {
      features.remove(feature)
    }
    for (feature, offloads) in NetworkOffloads.receiveFeatures where !capabilities.receives.isSuperset(of: offloads) {
      features.remove(feature)
    }
    if let server = capabilities.serverFeatures {
      features.subtract(ringFeatures.subtracting(server).union(.netControlGuestOffloads))
    }
    features.insert(.netMAC)
    if parameters.mtu != nil { features.insert(.netMTU) }
    if parameters.speed != nil || parameters.duplex != nil { features.insert(.netSpeedDuplex) }
    // A feature that is removed may be a requirement of another, in at most two steps.
    var before: VirtioFeatures
    repeat {
      before = features
      for requirement in requirements + offerRequirements where !requirement.isMet(by: features) {
        features.remove(requirement.feature)
      }
    } while features != before
    return features
  }
}

extension NetworkOffloads {
  /// The features by which the driver may request offloads of packets that it sends.
  static let sendFeatures: [(feature: VirtioFeatures, offloads: NetworkOffloads)] = [
    (.netChecksum, .checksum), (.netHostTSO4, .tso4), (.netHostTSO6, .tso6), (.netHostECN, .ecn),
    (.netHostUFO, .ufo), (.netHostUSO, [.uso4, .uso6]),
  ]
  /// The features by which the driver accepts offloads of packets that it receives.
  static let receiveFeatures: [(feature: VirtioFeatures, offloads: NetworkOffloads)] = [
    (.netGuestChecksum, .checksum), (.netGuestTSO4, .tso4), (.netGuestTSO6, .tso6), (.netGuestECN, .ecn),
    (.netGuestUFO, .ufo), (.netGuestUSO4, .uso4), (.netGuestUSO6, .uso6),
  ]

  static let allReceiveFeatures = receiveFeatures.reduce(into: VirtioFeatures()) { $0.insert($1.feature) }

  init(sentWith features: VirtioFeatures) { self.init(features, Self.sendFeatures) }
  init(receivedWith features: VirtioFeatures) { self.init(features, Self.receiveFeatures) }

  private init(_ features: VirtioFeatures, _ table: [(feature: VirtioFeatures, offloads: NetworkOffloads)]) {
    self = []
    for (feature, offloads) in table where features.contains(feature) { formUnion(offloads) }
  }
}
