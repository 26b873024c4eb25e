/// Every device type of `-device`. A new device type is a file in the folder `DeviceTypes` and a line here.
public enum DeviceTypes {
  /// The types that are built onto a board. The compiler checks that each of them has `build`.
  static let pluggable: [any (DeviceOptions & BoardDevice).Type] = [
    PCIERootPortOptions.self,
    VirtioBlockOptions.self,
    VirtioRNGOptions.self,
    VirtioNetOptions.self,
    VhostUserBlockOptions.self,
    VhostUserFSOptions.self,
    VFIOPCIOptions.self,
    EduOptions.self,
    IOMMUTestDeviceOptions.self,
    DMAEngineOptions.self,
    DebugExitOptions.self,
  ]

  /// All device types. `intel-iommu` is not among the pluggable ones, because the board is made with its IOMMUs.
  public static let all: [any DeviceOptions.Type] = [IntelIOMMUOptions.self] + pluggable.map { $0 }

  public static func named(_ name: String) -> (any DeviceOptions.Type)? {
    all.first { $0.typeName == name || $0.typeAliases.contains(name) }
  }
}
