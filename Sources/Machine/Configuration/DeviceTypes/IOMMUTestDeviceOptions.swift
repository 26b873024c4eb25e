import Devices
import PCI

/// `iommu-testdev`: QEMU's device for tests of an IOMMU without an operating system. It has only the options of every
/// PCI device.
public struct IOMMUTestDeviceOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()

  public init() {}

  public static let typeName = "iommu-testdev"
  public static let summary = "A test device for IOMMU"
  public static let category = DeviceCategory.misc

  public static let properties: [Property<Self>] = PCIFunctionOptions.properties.map { $0.within(\.function) }
}

extension IOMMUTestDeviceOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) -> [Function] {
    guard let place = device.place else { return [] }
    let model = IOMMUTestDevice(environment: board.environment(at: place), address: place.address)
    return [model.function]
  }
}
