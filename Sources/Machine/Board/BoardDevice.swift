import PCI

/// A device type that can be built onto a board. All types in `DeviceTypes` can, except the IOMMU: the board is made
/// with it.
protocol BoardDevice {
  /// Makes the device's functions, which the board then plugs in. May block on the host.
  /// - Throws: why the functions cannot be made. Nothing remains then.
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function]
}
