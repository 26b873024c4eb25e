import Devices
import PCI

/// `dma-engine`: Nestling's own endpoint with PASID, address translation and page requests, for tests of the IOMMU.
/// QEMU has no such device. `Devices/Test/DMAEngineRegisters.swift` describes its registers.
public struct DMAEngineOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()

  public init() {}

  public static let typeName = "dma-engine"
  public static let summary = "DMA engine with PASID, ATS and page requests, to drive the IOMMU"
  public static let category = DeviceCategory.misc

  public static let properties: [Property<Self>] = PCIFunctionOptions.properties.map { $0.within(\.function) }
}

extension DMAEngineOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) -> [Function] {
    guard let place = device.place else { return [] }
    let model = DMAEngine(environment: board.environment(at: place), address: place.address)
    return [model.function]
  }
}
