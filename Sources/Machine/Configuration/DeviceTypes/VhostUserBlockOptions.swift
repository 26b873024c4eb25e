import Devices
import Hardware
import PCI
import VhostUser

/// `vhost-user-blk-pci`: a disk that another process serves (virtio 1.2, section 5.2), such as qemu-storage-daemon. Names
/// and defaults are QEMU's.
public struct VhostUserBlockOptions: VhostUserOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  public var chardev: Identifier?
  /// Nil for one queue per CPU.
  public var queueCount: UInt16?
  public var queueSize: UInt16 = 128
  /// Whether the driver may switch the write cache, if the back end offers that.
  public var writeCacheSwitch = true
  public var transport = VirtioOptions()

  public init() {}

  public static let typeName = "vhost-user-blk-pci"
  public static let typeAliases = ["vhost-user-blk"]
  public static let summary = "Disk that another process serves (vhost-user)"
  public static let category = DeviceCategory.storage
  public static let needsSharedMemory = true

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) }
    + VirtioOptions.properties.map { $0.within(\.transport) } + [
      Property("chardev", \.chardev, help: "ID of the socket chardev of the back end"),
      Property(
        "num-queues", \.queueCount, .within(VirtioBlockParameters.queueCounts),
        help: "Request queues; default: one per CPU"),
      Property(
        "queue-size", \.queueSize, .powerOfTwo(within: VirtioBlockParameters.queueSizes),
        help: "Descriptors per queue, a power of two"),
      Property("config-wce", \.writeCacheSwitch, help: "The guest may switch the write cache"),
    ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "chardev is missing: name the -chardev socket of the back end") { $0.chardev != nil }
  ]

  /// struct virtio_blk_config, up to the fields of write zeroes.
  private static let configurationSize = 0x3c
  /// The field num_queues.
  private static let queueCountOffset = 0x22

  private func queueCount(processors: Int) -> Int {
    Int(queueCount ?? min(UInt16(clamping: processors), VirtioBlockParameters.queueCounts.upperBound))
  }

  func profile(processors: Int, usesTranslation: Bool) -> DeviceProfile {
    var profile = DeviceProfile(
      queueCount: queueCount(processors: processors), queueSize: queueSize, queueCountWithoutReport: 1,
      usesTranslation: usesTranslation)
    profile.configurationSize = Self.configurationSize
    profile.requiredProtocolFeatures.insert(.configuration)
    return profile
  }

  func kind(processors: Int) -> VhostUserVirtio.Kind {
    let count = queueCount(processors: processors)
    // SIZE_MAX, SEG_MAX, GEOMETRY, RO, BLK_SIZE, FLUSH, TOPOLOGY, DISCARD, WRITE_ZEROES: virtio 1.2, 5.2.3.
    var bits = [1, 2, 4, 5, 6, 9, 10, 13, 14]
    if writeCacheSwitch { bits.append(11) }
    if count > 1 { bits.append(12) }
    return VhostUserVirtio.Kind(
      type: 2, classCode: 0x010000, name: "vhost-user-blk",
      queueSizes: Array(repeating: queueSize, count: count),
      knownFeatures: VirtioFeatures(bits.map { VirtioFeatures(bit: $0) }),
      configuration: { backEnd in
        var bytes = backEnd
        // The back end may have more queues than the device.
        if bytes.count >= Self.queueCountOffset + 2 { bytes.store(UInt16(count), at: Self.queueCountOffset) }
        return bytes
      })
  }
}
