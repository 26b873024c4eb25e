/// `virtio-rng-pci`: entropy for the guest (virtio 1.2, 5.4). Names and defaults are QEMU's.
public struct VirtioRNGOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var virtio = VirtioPCIOptions()
  /// The id of an rng object; nil for the host's getrandom.
  public var source: Identifier?

  public init() {}

  public var function: PCIFunctionOptions { virtio.function }
  public var objects: [ObjectUse] {
    guard let source else { return [] }
    return [
      ObjectUse(property: "rng", id: source, kindNames: [RNGBuiltinOptions.kindName, RNGRandomOptions.kindName])
    ]
  }

  public static let kindName = "virtio-rng-pci"
  public static let kindAliases = ["virtio-rng"]
  public static let summary = "Entropy for the guest"
  public static let category = DeviceCategory.misc

  private static let unlimited = "entropy is not rationed yet"

  public static let properties: [Property<Self>] =
    VirtioPCIOptions.properties.map { $0.within(\.virtio) } + [
      Property("rng", \.source, help: "ID of an rng object; the host's getrandom where not given"),
      Property(
        "max-bytes", settled: UInt64(Int64.max), because: unlimited, help: "Bytes at most in each period"),
      Property(
        "period", settled: UInt32(65536), because: unlimited, help: "Length of a period in milliseconds"),
    ]
}
