import Hardware

/// The places of the command line's devices.
extension MachineConfiguration {
  /// 00:00.0 and 00:1f.0, as on every q35.
  public static let hostBridgeAddress = RequesterID(bus: 0, device: 0, function: 0)
  public static let isaBridgeAddress = RequesterID(bus: 0, device: 0x1f, function: 0)

  /// Returns the places that start-up will give the devices. The check of a configuration and the scopes of remapping
  /// units need the places before the board exists.
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
