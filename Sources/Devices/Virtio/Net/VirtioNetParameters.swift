/// The options of a `virtio-net-pci` device. Comments give QEMU's property names.
public struct VirtioNetParameters: Hashable, Sendable {
  /// The option whose value is out of range. The raw value is QEMU's property name.
  public enum Problem: String, Error, Hashable, Sendable {
    /// The address is a multicast address.
    case address = "mac"
    case receiveQueueSize = "rx_queue_size"
    case transmitQueueSize = "tx_queue_size"
    case mtu = "host_mtu"
    case speed, vectors
    /// The number of the backend's queue pairs.
    case queuePairs = "queues"
  }

  /// duplex
  public enum Duplex: String, CaseIterable, Hashable, Sendable {
    case half, full

    /// The value of the configuration's field (5.1.4).
    var code: UInt8 { self == .full ? 1 : 0 }
  }

  /// mac
  public var address = MACAddress(rawValue: 0x5254_0012_3456)
  /// The features that the options enable, by the properties of `featureProperties`. The device offers those of them
  /// that the backend supports. The MAC address, host_mtu, speed and duplex are apart.
  public var features = Self.featureProperties.reduce(into: VirtioFeatures()) { features, property in
    if property.isDefault { features.insert(property.feature) }
  }
  /// host_mtu, in bytes; nil for none.
  public var mtu: UInt16?
  /// speed, in Mbit/s; nil for unknown.
  public var speed: UInt32?
  /// duplex; nil for unknown.
  public var duplex: Duplex?
  /// rx_queue_size: the number of descriptors of each receive queue.
  public var receiveQueueSize: UInt16 = 256
  /// tx_queue_size: the number of descriptors of each transmit queue.
  public var transmitQueueSize: UInt16 = 256
  /// The options of every virtio device: iommu_platform, event_idx and so on.
  public var transport = VirtioOptions()

  /// The possible sizes of receive and transmit queues, as in QEMU.
  public static let queueSizes: ClosedRange<UInt16> = 256...VirtQueue.sizeLimit
  /// The possible MTUs (5.1.4.1).
  public static let mtus: ClosedRange<UInt16> = 68...65535
  /// The possible speeds.
  public static let speeds: ClosedRange<UInt32> = 0...0x7fff_ffff
  /// The possible numbers of queue pairs: all doorbells fit their page.
  public static let pairCounts = 1...511

  /// QEMU's properties that enable one feature each. QEMU's `gso` is not among them: its feature exists only in the
  /// legacy interface (5.1.3.2).
  public static let featureProperties: [(name: String, feature: VirtioFeatures, isDefault: Bool)] = [
    ("csum", .netChecksum, true),
    ("guest_csum", .netGuestChecksum, true),
    ("guest_tso4", .netGuestTSO4, true),
    ("guest_tso6", .netGuestTSO6, true),
    ("guest_ecn", .netGuestECN, true),
    ("guest_ufo", .netGuestUFO, true),
    ("guest_uso4", .netGuestUSO4, true),
    ("guest_uso6", .netGuestUSO6, true),
    ("guest_announce", .netGuestAnnounce, true),
    ("host_tso4", .netHostTSO4, true),
    ("host_tso6", .netHostTSO6, true),
    ("host_ecn", .netHostECN, true),
    ("host_ufo", .netHostUFO, true),
    ("host_uso", .netHostUSO, true),
    ("mrg_rxbuf", .netMergeBuffers, true),
    ("status", .netStatus, true),
    ("ctrl_vq", .netControlQueue, true),
    ("ctrl_rx", .netControlReceive, true),
    ("ctrl_vlan", .netControlVLAN, true),
    ("ctrl_rx_extra", .netControlReceiveExtra, true),
    ("ctrl_mac_addr", .netControlMAC, true),
    ("ctrl_guest_offloads", .netControlGuestOffloads, true),
    ("mq", .netMultiqueue, false),
  ]

  public init() {}

  /// Whether a feature of `featureProperties` is enabled.
  public subscript(feature: VirtioFeatures) -> Bool {
    get { features.contains(feature) }
    set { if newValue { features.insert(feature) } else { features.remove(feature) } }
  }

  /// Checks the options.
  /// - Throws: the first value that is out of range.
  public func validate() throws(Problem) {
    guard !address.isMulticast else { throw .address }
    guard Self.isQueueSize(receiveQueueSize) else { throw .receiveQueueSize }
    guard Self.isQueueSize(transmitQueueSize) else { throw .transmitQueueSize }
    if let mtu, !Self.mtus.contains(mtu) { throw .mtu }
    if let speed, !Self.speeds.contains(speed) { throw .speed }
    if let vectors = transport.vectors, !VirtioOptions.vectorRange.contains(vectors) { throw .vectors }
  }

  private static func isQueueSize(_ size: UInt16) -> Bool {
    queueSizes.contains(size) && size.nonzeroBitCount == 1
  }
}
