import Devices
import Hardware

/// The bus that a device type plugs into.
public enum DeviceBus: String, Sendable {
  case system = "System"
  case pci = "PCI"
  case isa = "ISA"
}

/// The heading under which `-device help` lists a device type.
public enum DeviceCategory: String, CaseIterable, Sendable {
  case bridge = "Controller/Bridge/Hub"
  case network = "Network"
  case storage = "Storage"
  case misc = "Misc"
}

/// The options of a device, from the command line, QMP or a test: all information from which the device is built.
public protocol DeviceOptions: QOMOptions {
  static var bus: DeviceBus { get }
  static var category: DeviceCategory { get }

  /// The block nodes that the device uses, by property and id.
  var nodes: [NodeUse] { get }
  /// The objects (`-object`) that the device uses, by property and id.
  var objects: [ObjectUse] { get }
  /// The netdev (`-netdev`) that the device uses.
  var netdev: NetdevUse? { get }
  /// The character device whose host's end the device takes over.
  var chardev: Identifier? { get }
  /// Whether another process maps the guest's RAM for the device.
  static var needsSharedMemory: Bool { get }
}

extension DeviceOptions {
  public var nodes: [NodeUse] { [] }
  public var objects: [ObjectUse] { [] }
  public var netdev: NetdevUse? { nil }
  public var chardev: Identifier? { nil }
  public static var needsSharedMemory: Bool { false }
}

/// A device's use of a block node.
public struct NodeUse: Hashable, Sendable {
  public var property: String
  public var id: String

  public init(property: String, id: String) {
    self.property = property
    self.id = id
  }
}

/// A device's use of an `-object`.
public struct ObjectUse: Hashable, Sendable {
  public var property: String
  public var id: Identifier
  /// The object types that the property accepts.
  public var typeNames: [String]

  public init(property: String, id: Identifier, typeNames: [String]) {
    self.property = property
    self.id = id
    self.typeNames = typeNames
  }
}

/// A device's use of a `-netdev`.
public struct NetdevUse: Hashable, Sendable {
  public var property: String
  public var id: Identifier

  public init(property: String, id: Identifier) {
    self.property = property
    self.id = id
  }
}

/// The options of a device that is a function on PCI Express.
public protocol PCIDeviceOptions: DeviceOptions {
  var function: PCIFunctionOptions { get }
}

extension PCIDeviceOptions {
  public static var bus: DeviceBus { .pci }
}

/// The options that every PCI device has.
public struct PCIFunctionOptions: Hashable, Sendable {
  /// The name of bus 0.
  public static let rootBus = "pcie.0"

  /// Device and function number; nil for the first free device number.
  public var address: RequesterID?
  /// `rootBus`, or the id of a root port.
  public var bus = Self.rootBus
  /// Whether the device number has other functions. Function 0 shows this to software, which then looks for the others.
  public var isMultifunction = false

  public init(address: RequesterID? = nil) { self.address = address }

  static let addressProperties: [Property<Self>] = [
    Property("addr", \.address, help: "Device and optional function number, example: 06.0 or 06"),
    Property("multifunction", \.isMultifunction, help: "There are other functions at the device number"),
  ]
  static let properties: [Property<Self>] =
    addressProperties + [
      Property("bus", \.bus, .notEmpty, help: "Bus that the device is on: pcie.0, or the ID of a root port")
    ]
}

/// The properties that every virtio device on PCI has, with QEMU's names.
extension VirtioOptions {
  private static let modernOnly = "devices are virtio 1.x only"

  static let properties: [Property<Self>] = [
    Property("iommu_platform", \.iommuPlatform, help: "DMA goes through the IOMMU (VIRTIO_F_ACCESS_PLATFORM)"),
    Property("event_idx", \.eventIndex, help: "Event index (VIRTIO_F_EVENT_IDX)"),
    Property(
      "disable-legacy", settled: OnOffAuto.on, orAlso: [.auto], because: modernOnly,
      help: "No legacy interface (always on)"),
    Property("disable-modern", settled: false, because: modernOnly, help: "No virtio 1.x interface (always off)"),
  ]
}
