import Devices
import Hardware
import PCI
import VhostUser

/// `vhost-user-fs-pci`: a folder of the host that virtiofsd serves (virtio 1.2, section 5.11). Names and defaults are
/// QEMU's.
public struct VhostUserFSOptions: VhostUserOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  public var chardev: Identifier?
  /// The name by which the guest mounts the folder.
  public var tag = ""
  /// The number of request queues. There is one more, for requests of high priority.
  public var requestQueueCount: UInt16 = 1
  public var queueSize: UInt16 = 128
  public var transport = VirtioOptions()

  public init() {}

  public static let typeName = "vhost-user-fs-pci"
  public static let typeAliases = ["vhost-user-fs"]
  public static let summary = "Folder of the host that another process serves (vhost-user)"
  public static let category = DeviceCategory.storage
  public static let needsSharedMemory = true

  /// The size of the field tag, in bytes.
  private static let tagSize = 36

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) }
    + VirtioOptions.properties.map { $0.within(\.transport) } + [
      Property("chardev", \.chardev, help: "ID of the socket chardev of the back end"),
      Property("tag", \.tag, .atMost(tagSize), help: "Name by which the guest mounts the folder"),
      Property("num-request-queues", \.requestQueueCount, .within(1...255), help: "Request queues"),
      Property(
        "queue-size", \.queueSize, .powerOfTwo(within: VirtioBlockParameters.queueSizes),
        help: "Descriptors per queue, a power of two"),
    ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "chardev is missing: name the -chardev socket of the back end") { $0.chardev != nil },
    PropertyRule(otherwise: "tag is missing: the guest mounts the folder by it") { !$0.tag.isEmpty },
  ]

  private var queueCount: Int { Int(requestQueueCount) + 1 }

  func profile(processors: Int, usesTranslation: Bool) -> DeviceProfile {
    DeviceProfile(
      queueCount: queueCount, queueSize: queueSize, queueCountWithoutReport: 2,
      usesTranslation: usesTranslation)
  }

  func kind(processors: Int) -> VhostUserVirtio.Kind {
    // struct virtio_fs_config: the tag, padded with zeroes, and the number of request queues.
    var configuration = Array(tag.utf8)
    configuration.append(contentsOf: repeatElement(0, count: max(0, Self.tagSize - configuration.count)))
    configuration.append(littleEndian: UInt32(requestQueueCount))
    let fixed = configuration
    return VhostUserVirtio.Kind(
      type: 26, classCode: 0x018000, name: "vhost-user-fs",
      queueSizes: Array(repeating: queueSize, count: queueCount), knownFeatures: [], configuration: { _ in fixed })
  }
}
