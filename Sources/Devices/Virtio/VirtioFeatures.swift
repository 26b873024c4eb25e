/// Feature bits (virtio 1.2, 2.2). These are the bits of the transport and the rings (section 6); each device type adds its
/// own in bits 0 to 23 and from 50 on.
public struct VirtioFeatures: OptionSet, Hashable, Sendable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public init(bit: Int) { rawValue = 1 &<< UInt64(truncatingIfNeeded: bit) }

  /// VIRTIO_F_INDIRECT_DESC: a descriptor may refer to a table of descriptors.
  public static let indirectDescriptors = VirtioFeatures(bit: 28)
  /// VIRTIO_F_EVENT_IDX: notifications are suppressed by index, not by flag.
  public static let eventIndex = VirtioFeatures(bit: 29)
  /// VIRTIO_F_VERSION_1: the driver follows the standard, not the legacy interface.
  public static let version1 = VirtioFeatures(bit: 32)
  /// VIRTIO_F_ACCESS_PLATFORM: addresses in rings are those of the platform's IOMMU.
  public static let accessPlatform = VirtioFeatures(bit: 33)
  /// VIRTIO_F_RING_RESET: the driver can reset a single queue.
  public static let ringReset = VirtioFeatures(bit: 40)
}

/// The device status field: virtio 1.2, 2.1.
public struct VirtioStatus: OptionSet, Hashable, Sendable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }

  public static let acknowledge = VirtioStatus(rawValue: 1)
  public static let driver = VirtioStatus(rawValue: 2)
  public static let driverOK = VirtioStatus(rawValue: 4)
  public static let featuresOK = VirtioStatus(rawValue: 8)
  /// DEVICE_NEEDS_RESET: the device sets it after an error from which it cannot recover.
  public static let deviceNeedsReset = VirtioStatus(rawValue: 0x40)
  public static let failed = VirtioStatus(rawValue: 0x80)

  /// The bits that a driver may set.
  static let writable: VirtioStatus = [.acknowledge, .driver, .driverOK, .featuresOK, .failed]
}
