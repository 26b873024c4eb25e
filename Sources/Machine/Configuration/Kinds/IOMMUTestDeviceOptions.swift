/// `iommu-testdev`: QEMU's device for tests of an IOMMU without an operating system. It has no options of its own.
public struct IOMMUTestDeviceOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()

  public init() {}

  public static let kindName = "iommu-testdev"
  public static let summary = "A test device for IOMMU"
  public static let category = DeviceCategory.misc

  public static let properties: [Property<Self>] = PCIFunctionOptions.properties.map { $0.within(\.function) }
}
