import Devices
import PCI

/// `edu`: QEMU's educational device, here to drive the IOMMU. Names and defaults are QEMU's.
public struct EduOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  /// The address bits that the device's DMA engine can drive.
  public var mask: UInt64 = 0xfff_ffff

  public init() {}

  public static let typeName = "edu"
  public static let summary = "Educational device: interrupts, and DMA through the IOMMU"
  public static let category = DeviceCategory.misc

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) } + [
      Property("dma_mask", \.mask, help: "Mask of the addresses that its DMA can reach")
    ]
}

extension EduOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) -> [Function] {
    guard let place = device.place else { return [] }
    let model = Edu(mask: mask, environment: board.environment(at: place), address: place.address)
    return [model.function]
  }
}
