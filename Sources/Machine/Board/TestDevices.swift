import Devices
import Hardware

// The devices that drive the IOMMU for tests, built onto a board.

extension EduOptions: BoardDevice {
  func build(on board: Board, at address: RequesterID?, with configuration: MachineConfiguration) {
    guard let address else { return }
    let device = Edu(mask: mask, environment: board.environment(at: address), address: address)
    board.plug(device.function) { device.remove() }
  }
}

extension IOMMUTestDeviceOptions: BoardDevice {
  func build(on board: Board, at address: RequesterID?, with configuration: MachineConfiguration) {
    guard let address else { return }
    let device = IOMMUTestDevice(environment: board.environment(at: address), address: address)
    board.plug(device.function) { device.remove() }
  }
}

extension DMAEngineOptions: BoardDevice {
  func build(on board: Board, at address: RequesterID?, with configuration: MachineConfiguration) {
    guard let address else { return }
    let device = DMAEngine(environment: board.environment(at: address), address: address)
    board.plug(device.function) { device.remove() }
  }
}
