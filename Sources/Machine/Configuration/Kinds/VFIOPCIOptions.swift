/// `vfio-pci`: a PCI function of the host, passed through by the kernel's VFIO and iommufd. Names are QEMU's.
public struct VFIOPCIOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  /// Its address on the host: `0000:01:00.0`, or `01:00.0`.
  public var host: String?
  /// Its folder in sysfs.
  public var sysfsFolder: String?
  /// Its open device file (`/dev/vfio/devices/vfioN`), inherited.
  public var descriptor: UInt32?
  /// The iommufd object.
  public var iommufd: Identifier?

  public init() {}

  public var objects: [ObjectUse] {
    guard let iommufd else { return [] }
    return [ObjectUse(property: "iommufd", id: iommufd, kindNames: [IOMMUFDOptions.kindName])]
  }

  /// As a person names it.
  public var hostName: String { host ?? sysfsFolder ?? descriptor.map { "fd \($0)" } ?? "" }

  public static let kindName = "vfio-pci"
  public static let summary = "A PCI function of the host, through VFIO and iommufd"
  public static let category = DeviceCategory.misc

  private static let noROM = "the expansion ROM is not shown: there is no firmware to run it"

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) } + [
      Property("host", \.host, .notEmpty, help: "Address on the host, example: 0000:01:00.0 or 01:00.0"),
      Property("sysfsdev", \.sysfsFolder, .notEmpty, help: "Its folder in sysfs instead"),
      Property(
        "fd", \.descriptor, .within(0...UInt32(Int32.max)), help: "Its open device file instead, inherited"),
      Property("iommufd", \.iommufd, help: "ID of an iommufd object"),
      Property("rombar", settled: UInt32(0), because: noROM, help: "Show the expansion ROM: never so"),
      Property("romfile", settled: "", because: noROM, help: "Show this as the expansion ROM: never so"),
      Property("x-no-mmap", settled: false, because: "BARs are always mapped where they can be", help: "Map no BAR"),
      Property(
        "x-msix-relocation", settled: "off", because: "the MSI-X table stays where the device has it",
        help: "Move the MSI-X table"),
      Property(
        "enable-migration", settled: OnOffAuto.off, orAlso: [.auto], because: "there is no migration",
        help: "Migration of the device"),
      Property("x-vga", settled: false, because: "there is no VGA", help: "Legacy VGA ranges"),
      Property("multifunction", settled: false, because: "every function is a device here", help: "Other functions"),
    ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "one of host, sysfsdev and fd names the device") {
      [$0.host != nil, $0.sysfsFolder != nil, $0.descriptor != nil].count(where: { $0 }) == 1
    },
    PropertyRule(otherwise: "iommufd is missing: name an -object iommufd; VFIO's containers are not offered") {
      $0.iommufd != nil
    },
  ]
}
