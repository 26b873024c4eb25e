import Hardware

/// Where a function is, from bus 0 on: by the port that it is below, not by a bus number, which is the guest's to change.
public struct PCIPlace: Hashable, Comparable, Sendable, CustomStringConvertible {
  /// The root port's address; nil for a function on bus 0.
  public let port: RequesterID?
  /// Device and function on its bus. The bus number in it is 0, and says nothing.
  public let address: RequesterID

  public init(_ address: RequesterID, below port: RequesterID? = nil) {
    self.address = RequesterID(bus: 0, device: address.device, function: address.function)
    self.port = port
  }

  public var device: UInt8 { address.device }

  /// Another function of the same device.
  func function(_ number: UInt8) -> PCIPlace {
    PCIPlace(RequesterID(bus: 0, device: device, function: number), below: port)
  }

  /// Device and function on each bus, from bus 0 to its own.
  var path: [RequesterID] { port.map { [$0, address] } ?? [address] }

  public static func < (a: PCIPlace, b: PCIPlace) -> Bool { a.path.lexicographicallyPrecedes(b.path) }

  /// `00:02.0`, and below a port `00:02.0/00.0`.
  public var description: String {
    port.map { "\($0)/\(address.description.dropFirst(3))" } ?? address.description
  }
}
