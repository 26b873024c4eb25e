/// The options of a `virtio-net-pci` device. Comments give QEMU's property names.
public struct VirtioNetParameters: Hashable, Sendable {
  /// An invalid option, with its value.
  public enum Problem: Error, Hashable, Sendable {
    /// mac is a multicast address.
    case address(MACAddress)
    /// rx_queue_size is not a power of two from 256 to 1024.
    case receiveQueueSize(Int)
    /// tx_queue_size is not a power of two from 256 to 1024.
    case transmitQueueSize(Int)
    /// host_mtu is not 68 to 65535 (5.1.4.1).
    case mtu(Int)
    /// speed is more than 2147483647.
    case speed(UInt32)
    /// vectors is not 0 to 2048.
    case vectors(Int)
    /// The backend does not have 1 to 511 queue pairs.
    case queuePairs(Int)
  }

  /// duplex: half or full.
  public enum Duplex: UInt8, Hashable, Sendable {
    case half = 0
    case full = 1
  }

  /// mac
  public var address = MACAddress(rawValue: 0x5254_0012_3456)
  /// The features that the options enable, by the properties of `featureProperties`. The device offers those of them
  /// that the backend supports. The MAC address, host_mtu, speed and duplex are apart.
  public var features = Self.featureProperties.reduce(into: VirtioFeatures()) { features, property in
    if property.isDefault { features.insert(property.feature) }
  }
  /// host_mtu, in bytes; nil for none.
  public var mtu: Int?
  /// speed, in Mbit/s; nil for unknown.
  public var speed: UInt32?
  /// duplex; nil for unknown.
  public var duplex: Duplex?
  /// rx_queue_size: the number of descriptors of each receive queue.
  public var receiveQueueSize = 256
  /// tx_queue_size: the number of descriptors of each transmit queue.
  public var transmitQueueSize = 256
  /// The options of every virtio device: iommu_platform, event_idx and so on.
  public var transport = VirtioOptions()

  /// The possible sizes of receive and transmit queues, as in QEMU.
  public static let queueSizeRange = 256...1024
  /// The possible MTUs.
  public static let mtuRange = 68...65535
  /// The possible numbers of queue pairs: all doorbells fit their page.
  public static let pairRange = 1...511

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
    guard !address.isMulticast else { throw .address(address) }
    guard Self.isQueueSize(receiveQueueSize) else { throw .receiveQueueSize(receiveQueueSize) }
    guard Self.isQueueSize(transmitQueueSize) else { throw .transmitQueueSize(transmitQueueSize) }
    if let mtu, !Self.mtuRange.contains(mtu) { throw .mtu(mtu) }
    if let speed, speed > UInt32(Int32.max) { throw .speed(speed) }
    if let vectors = transport.vectors, !VirtioOptions.vectorRange.contains(vectors) { throw .vectors(vectors) }
  }

  private static func isQueueSize(_ size: Int) -> Bool {
    queueSizeRange.contains(size) && size.nonzeroBitCount == 1
  }
}
