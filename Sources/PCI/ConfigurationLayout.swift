/// A given layout of configuration space, for a passed-through function of the host: its capabilities stay at the offsets
/// that its drivers may expect. `Function` defines the header, BARs, MSI-X and MSI over it.
public struct ConfigurationLayout: Sendable {
  /// Identity, capabilities and their list, with the values after a reset.
  public var space: ConfigurationSpace
  /// Offset of the MSI-X capability in `space`, or nil. `FunctionDescription.msix` determines its content.
  public var msixOffset: Int?
  /// Offset of the MSI capability, with room for its 24 bytes (64-bit addresses and per-vector masking), or nil.
  public var msiOffset: Int?
  public var expressOffset: Int?
  /// Offset of the Power Management capability (PCI Power Management 1.2, 3.2), or nil. `space` defines its control
  /// register. The BARs decode only in D0.
  public var powerManagementOffset: Int?

  public init(space: ConfigurationSpace) { self.space = space }
}

extension ConfigurationSpace {
  /// Defines the body of the existing capability at `offset`, or appends a new capability if `offset` is nil.
  /// - Returns: the offset of the capability.
  mutating func putCapability(at offset: Int?, id: UInt8, body: [UInt8], writable mask: [UInt8]) -> Int {
    guard let offset else { return addCapability(id: id, body: body, writable: mask) }
    precondition(offset >= 0x40 && offset + 2 + body.count <= 0x100, "a capability lies after the header, in the first 256 bytes")
    for (index, byte) in body.enumerated() {
      define(offset + 2 + index, byte, writable: index < mask.count ? mask[index] : 0)
    }
    return offset
  }
}
