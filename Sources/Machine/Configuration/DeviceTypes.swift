/// Every kind of device that can be asked for. A new kind is a file in `Kinds` and a line here.
public enum DeviceTypes {
  /// Those that are built onto a board. A kind that says no way to do so does not compile here.
  static let pluggable: [any (DeviceOptions & BoardDevice).Type] = [
    PCIERootPortOptions.self,
    VirtioBlockOptions.self,
    VirtioRNGOptions.self,
    VFIOPCIOptions.self,
    EduOptions.self,
    IOMMUTestDeviceOptions.self,
    DMAEngineOptions.self,
    DebugExitOptions.self,
  ]

  /// The board is made with its IOMMUs, so they are no devices that are built onto it.
  public static let all: [any DeviceOptions.Type] = [IntelIOMMUOptions.self] + pluggable.map { $0 }

  public static func named(_ name: String) -> (any DeviceOptions.Type)? {
    all.first { $0.typeName == name || $0.typeAliases.contains(name) }
  }
}
