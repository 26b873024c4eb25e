import Hardware

/// The identity of one device. Unlike an id, a path or an address, it is never reused during the machine's life.
public struct DeviceIdentity: Hashable, Sendable {
  let number: UInt64
}

/// One device of a machine, from its admission until it is gone.
public struct Device: Sendable {
  public let identity: DeviceIdentity
  public let options: any DeviceOptions
  /// The device's place; nil for a device that is not on PCI.
  public let place: PCIPlace?
  /// The path in the QOM tree: `/machine/peripheral/ID`, or `/machine/peripheral-anon/device[N]` without an id.
  public let path: String

  /// The device and function number; nil for a device that is not on PCI. Its bus number is always 0.
  public var address: RequesterID? { place?.address }
  public var id: Identifier? { options.id }
  /// The name in requests and messages: the id, or the path of a device without id.
  public var name: String { id?.text ?? path }
  public var typeName: String { type(of: options).typeName }
}
