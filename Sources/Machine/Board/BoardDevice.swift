import PCI

/// How a kind of device is built onto a board. Each kind in `DeviceTypes` is; the IOMMU is not, as the board is made with
/// it.
protocol BoardDevice {
  /// Makes the device's functions, which the board then plugs. It may wait for the host. What fails leaves nothing.
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function]
}
