import Hardware

/// The PCI Express capability: PCI Express Base 7.5.3, version 2, without the registers that a function has no
/// link or slot for.
struct ExpressCapability {
  static let id: UInt8 = 0x10
  static let deviceControl = 0x08

  /// Device Control bit 15: Initiate Function Level Reset; reads zero.
  static let initiateFunctionLevelReset: UInt16 = 1 << 15

  /// What the function is on the fabric: the Device/Port Type field.
  let type: ExpressType
  /// The function's requests may carry an end-end TLP prefix: a PASID.
  var endToEndPrefix = false

  var body: (bytes: [UInt8], writable: [UInt8]) {
    var bytes = [UInt8](repeating: 0, count: 0x3c - 2)
    var writable = bytes
    // Offsets below are the capability's own; its first two bytes are the identifier and the next pointer.
    bytes.store(UInt16(2) | UInt16(type.rawValue) << 4, at: 0x02 - 2)
    // Role-Based Error Reporting, Function Level Reset; payload of 128 bytes.
    bytes.store(UInt32(1) << 15 | UInt32(1) << 28, at: 0x04 - 2)
    // Device Control's defaults: relaxed ordering, no snoop, read requests of 512 bytes.
    bytes.store(UInt16(0x2810), at: 0x08 - 2)
    // Error reporting enables, relaxed ordering, payload and read request sizes, no snoop.
    writable.store(UInt16(0x78ff), at: 0x08 - 2)
    // Device Capabilities 2: End-End TLP Prefix Supported, Max End-End TLP Prefixes 1.
    if endToEndPrefix { bytes.store(UInt32(1) << 21 | UInt32(1) << 22, at: 0x24 - 2) }
    return (bytes, writable)
  }
}

public enum ExpressType: UInt8, Sendable {
  case endpoint = 0
  case rootComplexIntegratedEndpoint = 9
}
