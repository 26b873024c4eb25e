import Devices
import PCI

/// `virtio-blk-pci`: a disk on a block node (virtio 1.2, section 5.2). Names and defaults are QEMU's.
public struct VirtioBlockOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  /// The id of the disk's block node.
  public var drive = ""
  public var parameters = VirtioBlockParameters()

  public init() {}

  public var nodes: [NodeUse] { [NodeUse(property: "drive", id: drive)] }

  public static let typeName = "virtio-blk-pci"
  public static let typeAliases = ["virtio-blk"]
  public static let summary = "Disk over a block node (-drive, -blockdev)"
  public static let category = DeviceCategory.storage

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) }
    + VirtioOptions.properties.map { $0.within(\.parameters.transport) } + [
      Property("drive", \.drive, .notEmpty, help: "Node name or ID of a block device to use as a backend"),
      Property(
        "num-queues", \.parameters.queueCount, .within(VirtioBlockParameters.queueCounts),
        help: "Request queues; default: one per CPU"),
      Property(
        "queue-size", \.parameters.queueSize, .powerOfTwo(within: VirtioBlockParameters.queueSizes),
        help: "Descriptors per queue, a power of two"),
      Property(
        "serial", \.parameters.serial, .atMost(VirtioBlock.serialSize), help: "Serial number that the guest sees"),
      Property(
        "logical_block_size", \.parameters.logicalBlockSize.size, .powerOfTwo(within: 512...2_097_152),
        help: "A power of two between 512 B and 2 MiB"),
      Property("discard", \.parameters.discard, help: "Offer discard"),
      Property("write-zeroes", \.parameters.writeZeroes, help: "Offer write zeroes"),
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
    var parameters = parameters
    let highest = VirtioBlockParameters.queueCounts.upperBound
    parameters.queueCount = parameters.queueCount ?? min(UInt16(clamping: configuration.processors.count), highest)
    let file = try node.open(memory: board.memory)
    let backend = FileBackend(file, discardUnmaps: node.discardUnmaps)
    let disk = try mapError(try VirtioBlock(options: parameters, backend: backend), StartError.disk)
    let model = VirtioPCI(
      device: disk, options: parameters.transport, environment: board.environment(at: place), address: place.address)
    board.disks.add(node.id, backend, disk)
    return [model.function]
  }
}
