import Hardware

/// The PCI Express capability, version 2: PCI Express Base 7.5.3. A root complex integrated endpoint has no link, and
/// only a port has a slot; the registers of a missing link or slot are zero. Links have one lane at 2.5 GT/s.
public struct ExpressCapability {
  /// The registers of an endpoint's link: one lane at 2.5 GT/s, no ASPM, with ASPM Optionality Compliance set. Software
  /// may set ASPM, the read completion boundary, common clock and extended synch.
  public static let link = (
    capabilities: UInt32(1) | UInt32(1) << 4 | UInt32(1) << 22, controlMask: UInt16(0xcb), status: UInt16(0x11)
  )

  static let id: UInt8 = 0x10
  static let deviceControl = 0x08
  static let linkControl = 0x10
  static let linkStatus = 0x12
  static let slotControl = 0x18
  static let slotStatus = 0x1a

  /// Device Capabilities 2 of a function whose requests carry a PASID, and of each port above it: Extended Fmt Field
  /// Supported (bit 20), End-End TLP Prefix Supported (21), Max End-End TLP Prefixes (23:22) 1. A PASID travels in an
  /// end-end prefix of the request's packet.
  public static let endToEndPrefixes: UInt32 = 1 << 20 | 1 << 21 | 1 << 22
  /// Offset of Device Capabilities 2.
  public static let deviceCapabilities2 = 0x24
  static let deviceControl2 = 0x28
  /// Device Control 2 bit 15: End-End TLP Prefix Blocking.
  static let endToEndPrefixBlocking: UInt16 = 1 << 15

  /// Link Control bit 4: Link Disable.
  static let linkDisable: UInt16 = 1 << 4
  /// Link Status bit 13: Data Link Layer Link Active.
  static let linkActive: UInt16 = 1 << 13
  /// Slot Status bit 6: Presence Detect State.
  static let presenceDetect: UInt16 = 1 << 6

  /// Device Control bit 15: Initiate Function Level Reset; reads zero.
  static let initiateFunctionLevelReset: UInt16 = 1 << 15

  /// The Device/Port Type field.
  let type: ExpressType
  /// Whether the function's requests may carry an end-end TLP prefix: a PASID. A port supports prefixes in any case.
  var endToEndPrefix = false
  var port: ExpressPort?

  var body: (bytes: [UInt8], writable: [UInt8]) {
    var bytes = [UInt8](repeating: 0, count: 0x3c - 2)
    var writable = bytes
    // The offsets below count from the capability's start. `bytes` starts after the identifier and the next pointer.
    bytes.store(UInt16(2) | UInt16(type.rawValue) << 4, at: 0x02 - 2)
    // Role-Based Error Reporting; Function Level Reset, except for a port; a maximum payload of 128 bytes.
    bytes.store(UInt32(1) << 15 | (port == nil ? UInt32(1) << 28 : 0), at: 0x04 - 2)
    // Reset value of Device Control: relaxed ordering, no snoop, read requests of 512 bytes.
    bytes.store(UInt16(0x2810), at: 0x08 - 2)
    // Error reporting enables, relaxed ordering, payload and read request sizes, no snoop.
    writable.store(UInt16(0x78ff), at: 0x08 - 2)
    if endToEndPrefix || port != nil { bytes.store(Self.endToEndPrefixes, at: Self.deviceCapabilities2 - 2) }
    if type != .rootComplexIntegratedEndpoint { addLink(&bytes, &writable) }
    if let port { add(port, &bytes, &writable) }
    return (bytes, writable)
  }

  private func addLink(_ bytes: inout [UInt8], _ writable: inout [UInt8]) {
    bytes.store(Self.link.capabilities, at: 0x0c - 2)
    bytes.store(Self.link.status, at: Self.linkStatus - 2)
    // A root port's read completion boundary is read-only.
    writable.store(Self.link.controlMask & (port == nil ? .max : ~0x08), at: Self.linkControl - 2)
    // Link Capabilities 2: 2.5 GT/s; Link Control 2: Target Link Speed.
    bytes.store(UInt32(1) << 1, at: 0x2c - 2)
    bytes.store(UInt16(1), at: 0x30 - 2)
    writable.store(UInt16(0xf), at: 0x30 - 2)
  }

  /// Adds the registers of a port. `SlotRegisters` provides Slot Control and Slot Status; without hotplug they are
  /// zero.
  private func add(_ port: ExpressPort, _ bytes: inout [UInt8], _ writable: inout [UInt8]) {
    // Slot Implemented.
    bytes.store(bytes.load(UInt16.self, at: 0x02 - 2) | 1 << 8, at: 0x02 - 2)
    // Link Active Reporting, Port Number.
    bytes.store(
      bytes.load(UInt32.self, at: 0x0c - 2) | UInt32(1) << 20 | UInt32(port.portNumber) << 24, at: 0x0c - 2)
    writable.store(writable.load(UInt16.self, at: Self.linkControl - 2) | Self.linkDisable, at: Self.linkControl - 2)
    // Slot Capabilities, Physical Slot Number.
    bytes.store(
      (port.hotplug.map(SlotRegisters.capabilities) ?? 0) | UInt32(port.slotNumber & 0x1fff) << 19, at: 0x14 - 2)
    // End-End TLP Prefix Blocking is hardwired to 1 in a root port that does not forward requests of other ports to its
    // link (7.5.3.16). Requests from the link go upstream nevertheless.
    bytes.store(Self.endToEndPrefixBlocking, at: Self.deviceControl2 - 2)
    // Root Control: the three System Error enables, PME Interrupt Enable.
    writable.store(UInt16(0xf), at: 0x1c - 2)
  }
}

/// The numbers that identify a port of the fabric, and whether its slot supports hotplug.
public struct ExpressPort: Hashable, Sendable {
  public var portNumber: UInt8
  /// 0 to 0x1fff.
  public var slotNumber: UInt16
  /// The hotplug method; nil for a slot without hotplug.
  var hotplug: HotplugWay?

  public init(portNumber: UInt8, slotNumber: UInt16) {
    self.portNumber = portNumber
    self.slotNumber = slotNumber
  }
}

/// Values of the Device/Port Type field.
public enum ExpressType: UInt8, Sendable {
  case endpoint = 0
  case rootPort = 4
  case rootComplexIntegratedEndpoint = 9
}
