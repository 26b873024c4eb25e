/// `iommufd`: the kernel's object by which devices of the host are passed through (<linux/iommufd.h>). Devices that
/// name the same one share its address space. Names and defaults are QEMU's.
public struct IOMMUFDOptions: ObjectOptions, Hashable {
  public var id: Identifier?
  /// An open `/dev/iommu`, inherited; nil to open it.
  public var descriptor: UInt32?

  public init() {}

  public static let kindName = "iommufd"
  public static let staysWhileUsed = true
  public static let summary = "The host's /dev/iommu, for vfio-pci"

  public static let properties: [Property<Self>] = [
    Property(
      "fd", \.descriptor, .within(0...UInt32(Int32.max)), help: "Open /dev/iommu, inherited; opened where not given")
  ]
}
