/// Every kind of device that can be asked for. A new kind is a file in `Kinds` and a line here.
public enum DeviceKinds {
  public static let all: [any DeviceOptions.Type] = [
    IntelIOMMUOptions.self,
    PCIERootPortOptions.self,
    VirtioBlockOptions.self,
    VirtioRNGOptions.self,
    VFIOPCIOptions.self,
    EduOptions.self,
    IOMMUTestDeviceOptions.self,
    DMAEngineOptions.self,
    DebugExitOptions.self,
  ]

  public static func named(_ name: String) -> (any DeviceOptions.Type)? {
    all.first { $0.kindName == name || $0.kindAliases.contains(name) }
  }
}
