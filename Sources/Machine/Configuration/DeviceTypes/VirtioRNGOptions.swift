import Devices
import Hardware
import PCI

/// `virtio-rng-pci`: entropy for the guest (virtio 1.2, section 5.4). Names and defaults are QEMU's.
public struct VirtioRNGOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  public var transport = VirtioOptions()
  /// The id of an rng object; nil for the host's getrandom.
  public var source: Identifier?
  /// The most bytes that the guest gets in one period.
  public var bytesPerPeriod = Self.unlimited
  /// Length of a period in milliseconds.
  public var period: UInt32 = 65536

  public init() {}

  public var objects: [ObjectUse] {
    guard let source else { return [] }
    return [
      ObjectUse(property: "rng", id: source, typeNames: [RNGBuiltinOptions.typeName, RNGRandomOptions.typeName])
    ]
  }

  public static let typeName = "virtio-rng-pci"
  public static let typeAliases = ["virtio-rng"]
  public static let summary = "Entropy for the guest"
  public static let category = DeviceCategory.misc

  /// No limit: QEMU's default, INT64_MAX.
  public static let unlimited = UInt64(Int64.max)

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) }
    + VirtioOptions.properties.map { $0.within(\.transport) } + [
      Property("rng", \.source, help: "ID of an rng object; default: the host's getrandom"),
      Property("max-bytes", \.bytesPerPeriod, help: "Most bytes in one period"),
      Property("period", \.period, .within(1...UInt32.max), help: "Length of a period in milliseconds"),
    ]
}

extension VirtioRNGOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place else { return [] }
    let source: any EntropySource
    switch RNGBackend(of: self, among: board.devices.objects) {
    case .host: source = HostEntropy()
    case .file(let path):
      source = try mapError(try FileEntropy(opening: path)) { StartError.file(option: "-object rng-random", $0) }
    }
    var limit: EntropyLimit?
    if bytesPerPeriod != Self.unlimited {
      limit = EntropyLimit(bytes: bytesPerPeriod, period: period, timer: board.clock.makeTimer())
    }
    let model = VirtioPCI(
      device: VirtioEntropy(source: source, limit: limit), options: transport,
      environment: board.environment(at: place), address: place.address)
    return [model.function]
  }
}
