import Devices
import PCI

/// `virtio-blk-pci`: a disk on a block node (virtio 1.2, section 5.2). Names and defaults are QEMU's.
public struct VirtioBlockOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var virtio = VirtioPCIOptions()
  /// The id of the disk's block node.
  public var drive = ""
  /// The number of queues; nil for one queue per vCPU.
  public var queueCount: UInt16?
  /// Descriptors per queue, a power of two.
  public var queueSize: UInt16 = 256
  /// The answer to VIRTIO_BLK_T_GET_ID, at most 20 bytes.
  public var serial = ""
  /// In bytes.
  public var logicalBlockSize: ByteCount = 512
  /// VIRTIO_BLK_F_DISCARD, if the node is writable.
  public var discard = true
  /// VIRTIO_BLK_F_WRITE_ZEROES, if the node is writable.
  public var writeZeroes = true

  public init() {}

  public var function: PCIFunctionOptions { virtio.function }
  public var nodes: [NodeUse] { [NodeUse(property: "drive", id: drive)] }

  public static let typeName = "virtio-blk-pci"
  public static let typeAliases = ["virtio-blk"]
  public static let summary = "Disk over a block node (-drive, -blockdev)"
  public static let category = DeviceCategory.storage

  public static let properties: [Property<Self>] =
    VirtioPCIOptions.properties.map { $0.within(\.virtio) } + [
      Property("drive", \.drive, .notEmpty, help: "Node name or ID of a block device to use as a backend"),
      Property("num-queues", \.queueCount, .within(1...256), help: "Request queues; default: one per CPU"),
      Property("queue-size", \.queueSize, .powerOfTwo(within: 4...1024), help: "Descriptors per queue, a power of two"),
      Property("serial", \.serial, .atMost(20), help: "Serial number that the guest sees"),
      Property(
        "logical_block_size", \.logicalBlockSize, .powerOfTwo(within: 512...2_097_152),
        help: "A power of two between 512 B and 2 MiB"),
      Property("discard", \.discard, help: "Offer discard"),
      Property("write-zeroes", \.writeZeroes, help: "Offer write zeroes"),
    ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "drive is missing: name a -drive or -blockdev") { !$0.drive.isEmpty }
  ]
}

extension VirtioBlockOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place, let node = board.devices.blockNodes.first(where: { $0.id == drive }) else {
      return []
    }
    var options = VirtioBlockParameters()
    options.queueCount = Int(queueCount ?? UInt16(clamping: min(configuration.processors.count, 256)))
    options.queueSize = Int(queueSize)
    options.serial = serial
    options.logicalBlockSize = Int(clamping: logicalBlockSize.bytes)
    options.discard = discard
    options.writeZeroes = writeZeroes
    options.transport = virtio.transport
    let file = try node.open(memory: board.memory)
    let backend = FileBackend(file, discardUnmaps: node.discardUnmaps)
    do {
      let disk = try VirtioBlock(options: options, backend: backend)
      let model = VirtioPCI(
        device: disk, options: options.transport, environment: board.environment(at: place), address: place.address)
      board.disks.add(node.id, backend, disk)
      return [model.function]
    } catch {
      throw .disk(error)
    }
  }
}
