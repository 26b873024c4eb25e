import Hardware

/// The place of a function: the port above it and its address. There is no bus number, because the guest can change bus
/// numbers.
public struct PCIPlace: Hashable, Comparable, Sendable, CustomStringConvertible {
  /// The root port's address; nil for a function on bus 0.
  public let port: RequesterID?
  /// The device and function number. The bus number is always 0 and has no meaning.
  public let address: RequesterID

  public init(_ address: RequesterID, below port: RequesterID? = nil) {
    self.address = RequesterID(bus: 0, device: address.device, function: address.function)
    self.port = port
  }

  public var device: UInt8 { address.device }

  /// Returns another function of the same device.
  func function(_ number: UInt8) -> PCIPlace {
    PCIPlace(RequesterID(bus: 0, device: device, function: number), below: port)
  }

  /// The device and function number on each bus from bus 0 to the function's bus.
  var path: [RequesterID] { port.map { [$0, address] } ?? [address] }

  public static func < (a: PCIPlace, b: PCIPlace) -> Bool { a.path.lexicographicallyPrecedes(b.path) }

  /// `00:02.0`, and below a port `00:02.0/00.0`.
  public var description: String {
    port.map { "\($0)/\(address.description.dropFirst(3))" } ?? address.description
  }
}

/// The places of the command line's devices.
extension MachineConfiguration {
  /// 00:00.0 and 00:1f.0, as on every q35.
  public static let hostBridgeAddress = RequesterID(bus: 0, device: 0, function: 0)
  public static let isaBridgeAddress = RequesterID(bus: 0, device: 0x1f, function: 0)

  /// Returns the places that start-up will give the devices. The check of a configuration and the scopes of remapping
  /// units need the places before the board exists.
  /// - Returns: a place for each of `devices`, in their order; nil for a device that is not on PCI.
  public func devicePlacement() throws(ConfigurationError) -> [PCIPlace?] {
    var admission = try DeviceAdmission(self)
    var placement: [PCIPlace?] = []
    for (index, device) in devices.enumerated() {
      placement.append(try mapError(try admission.admit(device)) { ConfigurationError.device(index: index, $0) })
    }
    return placement
  }
}
