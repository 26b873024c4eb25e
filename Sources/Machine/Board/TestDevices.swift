import Devices
import Hardware
import PCI

// The devices that drive the IOMMU for tests, built onto a board.

extension EduOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) -> [Function] {
    guard let place = device.place else { return [] }
    let model = Edu(mask: mask, environment: board.environment(at: place), address: place.address)
    return [model.function]
  }
}

extension IOMMUTestDeviceOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) -> [Function] {
    guard let place = device.place else { return [] }
    let model = IOMMUTestDevice(environment: board.environment(at: place), address: place.address)
    return [model.function]
  }
}

extension DMAEngineOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) -> [Function] {
    guard let place = device.place else { return [] }
    let model = DMAEngine(environment: board.environment(at: place), address: place.address)
    return [model.function]
  }
}
