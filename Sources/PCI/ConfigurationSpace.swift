import Hardware

/// The configuration space of a function as data: PCI Express Base, sections 7.2 and 7.5.
///
/// Each bit is read-only, read-write (RW) or write-1-to-clear (RW1C). The owner of the space acts on changes.
public struct ConfigurationSpace: Sendable {
  public static let size = 4096

  private var bytes = [UInt8](repeating: 0, count: size)
  private var writable = [UInt8](repeating: 0, count: size)
  private var writeOneToClear = [UInt8](repeating: 0, count: size)
  /// The place where `addCapability` stores the next capability's offset: the next pointer of the last capability, or
  /// 0x34.
  private var lastCapabilityPointer = StandardOffset.capabilitiesPointer
  private var nextCapability = 0x40
  private var lastExtendedCapability: Int?
  private var nextExtendedCapability = 0x100

  public init() {}

  /// - Parameter offset: any alignment. An access that leaves the 4 KiB reads all ones.
  public func read(_ offset: Int, _ width: AccessWidth) -> UInt64 {
    guard offset >= 0, offset + width.rawValue <= Self.size else { return width.allOnes }
    return width.assemble(from: offset) { bytes[$0] }
  }

  /// Performs a write by software, which changes only RW and RW1C bits.
  public mutating func write(_ offset: Int, _ width: AccessWidth, _ value: UInt64) {
    guard offset >= 0, offset + width.rawValue <= Self.size else { return }
    width.split(value, from: offset) { at, new in
      let kept = bytes[at] & ~writable[at] & ~(new & writeOneToClear[at])
      bytes[at] = kept | (new & writable[at])
    }
  }

  /// Defines the reset value of a field and the bits that software may change.
  public mutating func define<Value: FixedWidthInteger & UnsignedInteger>(
    _ offset: Int, _ value: Value, writable mask: Value = 0, writeOneToClear clearMask: Value = 0
  ) {
    bytes.store(value, at: offset)
    writable.store(mask, at: offset)
    writeOneToClear.store(clearMask, at: offset)
  }

  /// Changes a field as hardware does, regardless of the masks.
  public mutating func set<Value: FixedWidthInteger & UnsignedInteger>(_ offset: Int, _ value: Value) {
    bytes.store(value, at: offset)
  }

  public func get<Value: FixedWidthInteger & UnsignedInteger>(_ type: Value.Type, _ offset: Int) -> Value {
    bytes.load(type, at: offset)
  }

  /// Appends a capability to the list at 0x34 (PCI Local Bus 3.0, section 6.7).
  /// - Parameters:
  ///   - body: the bytes after the identifier and the next pointer.
  ///   - writable: the RW bits of the body; missing bytes are read-only.
  /// - Returns: the offset of the capability.
  public mutating func addCapability(id: UInt8, body: [UInt8], writable mask: [UInt8] = []) -> Int {
    let offset = nextCapability
    precondition(offset + 2 + body.count <= 0x100, "capabilities fit into the first 256 bytes")
    define(lastCapabilityPointer, UInt8(offset))
    define(offset, id)
    define(offset + 1, UInt8(0))
    defineBytes(offset + 2, body, writable: mask)
    lastCapabilityPointer = offset + 1
    nextCapability = (offset + 2 + body.count + 3) & ~3
    bytes[StandardOffset.status] |= 1 << 4  // Capabilities List
    return offset
  }

  /// Defines the body of the existing capability at `offset`, or appends a new capability if `offset` is nil.
  /// - Returns: the offset of the capability.
  mutating func putCapability(at offset: Int?, id: UInt8, body: [UInt8], writable mask: [UInt8]) -> Int {
    guard let offset else { return addCapability(id: id, body: body, writable: mask) }
    precondition(offset >= 0x40 && offset + 2 + body.count <= 0x100, "capabilities follow the header")
    defineBytes(offset + 2, body, writable: mask)
    return offset
  }

  /// Appends an extended capability to the list at 0x100 (PCI Express Base 7.6.3).
  /// - Returns: the offset of the capability.
  public mutating func addExtendedCapability(
    id: UInt16, version: UInt8, body: [UInt8], writable mask: [UInt8] = [], writeOneToClear clearMask: [UInt8] = []
  ) -> Int {
    let offset = nextExtendedCapability
    precondition(offset + 4 + body.count <= Self.size, "extended capabilities fit into configuration space")
    if let last = lastExtendedCapability {
      set(last, get(UInt32.self, last) | UInt32(offset) << 20)
    }
    define(offset, UInt32(id) | UInt32(version & 0xf) << 16)
    defineBytes(offset + 4, body, writable: mask, writeOneToClear: clearMask)
    lastExtendedCapability = offset
    nextExtendedCapability = (offset + 4 + body.count + 3) & ~3
    return offset
  }

  /// Defines consecutive bytes. Masks may be shorter than the bytes.
  private mutating func defineBytes(
    _ offset: Int, _ body: [UInt8], writable mask: [UInt8], writeOneToClear clearMask: [UInt8] = []
  ) {
    for (index, byte) in body.enumerated() {
      define(
        offset + index, byte, writable: index < mask.count ? mask[index] : 0,
        writeOneToClear: index < clearMask.count ? clearMask[index] : 0)
    }
  }
}

/// Offsets in the type 0 header: PCI Express Base 7.5.1.
public enum StandardOffset {
  public static let vendorID = 0x00
  public static let deviceID = 0x02
  public static let command = 0x04
  /// The bytes of the Command register.
  public static let commandBytes = command..<command + 2
  public static let status = 0x06
  public static let revisionID = 0x08
  public static let classCode = 0x09
  public static let headerType = 0x0e
  public static let baseAddressRegisters = 0x10
  public static let subsystemVendorID = 0x2c
  public static let subsystemID = 0x2e
  public static let expansionROM = 0x30
  public static let capabilitiesPointer = 0x34
  public static let interruptLine = 0x3c
  public static let interruptPin = 0x3d
}

/// The Command register: PCI Express Base 7.5.1.1.3.
public struct Command: OptionSet, Sendable {
  public let rawValue: UInt16
  public init(rawValue: UInt16) { self.rawValue = rawValue }

  public static let ioSpaceEnable = Command(rawValue: 1 << 0)
  public static let memorySpaceEnable = Command(rawValue: 1 << 1)
  public static let busMasterEnable = Command(rawValue: 1 << 2)
  public static let parityErrorResponse = Command(rawValue: 1 << 6)
  public static let serrEnable = Command(rawValue: 1 << 8)
  public static let interruptDisable = Command(rawValue: 1 << 10)

  static let writable: Command = [
    .ioSpaceEnable, .memorySpaceEnable, .busMasterEnable, .parityErrorResponse, .serrEnable, .interruptDisable,
  ]
}
