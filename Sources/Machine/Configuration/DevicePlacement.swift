import Hardware

/// Where the devices of the command line sit.
extension MachineConfiguration {
  /// 00:00.0 and 00:1f.0, as on every q35.
  public static let hostBridgeAddress = RequesterID(bus: 0, device: 0, function: 0)
  public static let isaBridgeAddress = RequesterID(bus: 0, device: 0x1f, function: 0)

  /// The places that the machine's start will give its devices, for what must know them before there is a board:
  /// the check of the configuration, and the scopes of remapping units.
  /// - Returns: a place for each of `devices`, in their order; nil for one that is not on PCI.
  public func devicePlacement() throws(ConfigurationError) -> [PCIPlace?] {
    var admission = try DeviceAdmission(self)
    var placement: [PCIPlace?] = []
    for (index, device) in devices.enumerated() {
      do throws(DeviceProblem) {
        placement.append(try admission.admit(device))
      } catch {
        throw .device(index: index, error)
      }
    }
    return placement
  }
}
