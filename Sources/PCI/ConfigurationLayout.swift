/// A configuration space that is laid out already, where a function of the host's is passed on: its capabilities stay
/// where its drivers know them. The BARs, and what the function's own MSI-X, MSI and reset answer, are put over it.
public struct ConfigurationLayout: Sendable {
  /// Identity, capabilities and their list, as they read after a reset.
  public var space: ConfigurationSpace
  /// Of the capabilities in it; nil for one that it has not. The description's say what is in them.
  public var msixOffset: Int?
  /// With room for the 24 bytes of an MSI capability that has 64-bit addresses and masks its vectors.
  public var msiOffset: Int?
  public var expressOffset: Int?
  /// Power Management (PCI Power Management 1.2, 3.2), whose control register is the space's to define: outside of D0 the
  /// BARs decode nothing.
  public var powerManagementOffset: Int?

  public init(space: ConfigurationSpace) { self.space = space }
}

extension ConfigurationSpace {
  /// Puts what follows a capability's identifier and next pointer where there is one, or appends it with them.
  mutating func putCapability(at offset: Int?, id: UInt8, body: [UInt8], writable mask: [UInt8]) -> Int {
    guard let offset else { return addCapability(id: id, body: body, writable: mask) }
    precondition(offset >= 0x40 && offset + 2 + body.count <= 0x100, "a capability lies behind the header")
    for (index, byte) in body.enumerated() {
      define(offset + 2 + index, byte, writable: index < mask.count ? mask[index] : 0)
    }
    return offset
  }
}
