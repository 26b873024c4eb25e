import Devices
import Hardware
import PCI

/// `virtio-net-pci`: a network device (virtio 1.2, section 5.1). Names and defaults are QEMU's.
public struct VirtioNetOptions: PCIDeviceOptions, Hashable {
  public var id: Identifier?
  public var function = PCIFunctionOptions()
  /// The id of the netdev; nil for a device without a network.
  public var backend: Identifier?
  /// Nil for the first free one of QEMU's default addresses.
  public var address: MACAddress?
  /// All but the address.
  public var parameters = VirtioNetParameters()

  public init() {}

  public var netdev: NetdevUse? { backend.map { NetdevUse(property: "netdev", id: $0) } }

  public static let typeName = "virtio-net-pci"
  public static let typeAliases = ["virtio-net"]
  public static let summary = "Network device over a netdev (-netdev)"
  public static let category = DeviceCategory.network

  public static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) }
    + VirtioOptions.properties.map { $0.within(\.parameters.transport) } + [
      Property("netdev", \.backend, help: "ID of a netdev to use as a backend"),
      Property("mac", \.address, help: "Ethernet 6-byte MAC Address, example: 52:54:00:12:34:56"),
      Property("host_mtu", \.mtu, help: "Largest packet for the driver, in bytes, without the Ethernet header"),
      Property(
        "speed", \.parameters.speed, .within(VirtioNetParameters.speeds),
        help: "Speed that the driver shows, in Mbit/s"),
      Property("duplex", \.parameters.duplex, help: "Duplex mode that the driver shows: half or full"),
      Property(
        "rx_queue_size", \.parameters.receiveQueueSize, .powerOfTwo(within: VirtioNetParameters.queueSizes),
        help: "Descriptors of each receive queue, a power of two"),
      Property(
        "tx_queue_size", \.parameters.transmitQueueSize, .powerOfTwo(within: VirtioNetParameters.queueSizes),
        help: "Descriptors of each transmit queue, a power of two"),
      Property(
        "vectors", \.vectors, .within(vectorCounts),
        help: "MSI-X vectors; default: one per queue, and one for configuration changes"),
    ]
    + VirtioNetParameters.featureProperties.map { property in
      Property(property.name, \.parameters[property.feature], help: "Offer the feature, if the netdev supports it")
    }

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "mac must not be a multicast address") { $0.address?.isMulticast != true },
    PropertyRule(otherwise: "host_mtu must be 0, or between \(mtus.lowerBound) and \(mtus.upperBound)") {
      $0.mtu == 0 || mtus.contains($0.mtu)
    },
  ]

  private static let mtus = VirtioNetParameters.mtus
  private static let vectorCounts =
    UInt16(VirtioOptions.vectorRange.lowerBound)...UInt16(VirtioOptions.vectorRange.upperBound)

  /// host_mtu, in bytes; 0 for none.
  private var mtu: UInt16 {
    get { parameters.mtu ?? 0 }
    set { parameters.mtu = newValue == 0 ? nil : newValue }
  }

  private var vectors: UInt16? {
    get { parameters.transport.vectors.map { UInt16(clamping: $0) } }
    set { parameters.transport.vectors = newValue.map(Int.init) }
  }
}

extension VirtioNetParameters.Duplex: ChoiceValue {}

extension VirtioNetOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place else { return [] }
    let environment = board.environment(at: place)
    let usesTranslation = parameters.transport.iommuPlatform && !(environment.remapper is DirectRemapper)
    let net = try board.networks.add(
      device, on: netdev, address: address, exists: { board.devices.phase(of: $0) != nil }
    ) { (backend, address) throws(StartError) in
      var parameters = parameters
      parameters.address = address
      let netdev = backend as? any NetdevBackend
      if let netdev {
        let options = parameters.transport
        parameters.transport = try mapError(
          try netdev.admit(options, usesTranslation: usesTranslation)
        ) { (reason: VhostUserProblem.Reason) -> StartError in
          .vhostUser(VhostUserProblem(typeName: Self.typeName, reason: reason))
        }
      }
      let net = try mapError(try VirtioNet(parameters: parameters, backend: backend), StartError.network)
      netdev?.setOffered(net.features.union(net.parameters.transport.ringFeatures))
      return net
    }
    let model = VirtioPCI(
      device: net, options: net.parameters.transport, environment: environment, address: place.address)
    return [model.function]
  }
}

extension MACAddress: PropertyValue {
  public static var typeName: String { "str" }

  /// Six numbers of two hexadecimal digits, with `:` or `-` between them (hw/core/qdev-properties-system.c, set_mac).
  public init(text: String) throws(ValueError) {
    let bytes = Array(text.utf8)
    guard bytes.count == 17 else { throw .notMACAddress }
    var address: UInt64 = 0
    for index in 0..<6 {
      let at = 3 * index
      guard let byte = NumberText.unsigned(bytes[at..<at + 2], radix: 16),
        index == 5 || bytes[at + 2] == UInt8(ascii: ":") || bytes[at + 2] == UInt8(ascii: "-")
      else { throw .notMACAddress }
      address = address << 8 | byte
    }
    self.init(rawValue: address)
  }

  public var text: String {
    bytes.map { $0 < 16 ? "0" + String($0, radix: 16) : String($0, radix: 16) }.joined(separator: ":")
  }
}
