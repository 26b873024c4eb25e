/// `iommufd`: the kernel's object for passing devices through (<linux/iommufd.h>). Devices that name the same object
/// share its address space. Names and defaults are QEMU's.
public struct IOMMUFDOptions: ObjectOptions, DescriptorTaking, Hashable {
  public var id: Identifier?
  /// An open `/dev/iommu`; nil to open it.
  public var file: DescriptorReference?

  public init() {}

  public static let typeName = "iommufd"
  public static let staysWhileUsed = true
  public static let summary = "The host's /dev/iommu, for vfio-pci"

  public static let properties: [Property<Self>] = [
    descriptorProperty(help: "An open /dev/iommu; by default Nestling opens it")
  ]
}
