import Hardware

/// Names one device for as long as the machine lives. It is never used again, as an id, a path and an address are.
public struct DeviceIdentity: Hashable, Sendable {
  let number: UInt64
}

/// One device of a machine, from its admission until it is gone.
public struct Device: Sendable {
  public let identity: DeviceIdentity
  public let options: any DeviceOptions
  /// nil for a device that is not on PCI.
  public let place: PCIPlace?
  /// In QEMU's object tree (QOM): `/machine/peripheral/ID`, or `/machine/peripheral-anon/device[N]` without an id.
  public let path: String

  /// Device and function on its bus, whose number is the bus's; nil for a device that is not on PCI.
  public var address: RequesterID? { place?.address }
  public var id: Identifier? { options.id }
  /// What requests and messages call it: its id, or its path.
  public var name: String { id?.text ?? path }
  public var typeName: String { type(of: options).typeName }
}
