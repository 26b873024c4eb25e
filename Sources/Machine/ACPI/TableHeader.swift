import Hardware

/// The header and the checksum of all description tables (ACPI 6.5, section 5.2.6).
enum TableHeader {
  static let size = 36
  /// OEM ID (6 characters), the same as in the DSDT's source.
  static let manufacturer = Array("NESTLI".utf8)
  /// OEM Table ID (8 characters), the same as in the DSDT's source.
  static let model = Array("NESTLING".utf8)

  /// Makes a table with this body, and fills in its length and checksum.
  static func table(_ signature: String, revision: UInt8, body: [UInt8]) -> [UInt8] {
    var bytes = Array(signature.utf8)
    bytes.append(littleEndian: UInt32(size + body.count))
    bytes.append(revision)
    bytes.append(0)  // checksum
    bytes += manufacturer
    bytes += model
    bytes.append(littleEndian: UInt32(1))  // OEM revision
    bytes += Array("NEST".utf8)  // creator ID
    bytes.append(littleEndian: UInt32(1))  // creator revision
    bytes += body
    bytes[9] = checksum(bytes[...])
    return bytes
  }

  /// Returns the checksum byte, which makes the sum of all bytes zero. The byte in its place must be zero now.
  static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt8 { 0 &- bytes.reduce(0, &+) }
}

/// The root pointer (RSDP, ACPI 6.5, section 5.2.5.3), from which an operating system finds all tables.
enum RootPointer {
  static let size = 36

  static func structure(extendedRoot: UInt64) -> [UInt8] {
    var bytes = Array("RSD PTR ".utf8)
    bytes.append(0)  // checksum of ACPI 1.0's 20 bytes
    bytes += TableHeader.manufacturer
    bytes.append(2)  // revision: ACPI 2.0 and later
    bytes.append(littleEndian: UInt32(0))  // RSDT
    bytes.append(littleEndian: UInt32(size))
    bytes.append(littleEndian: extendedRoot)
    bytes.append(0)  // checksum of all 36 bytes
    bytes += [0, 0, 0]
    bytes[8] = TableHeader.checksum(bytes[..<20])
    bytes[32] = TableHeader.checksum(bytes[...])
    return bytes
  }
}

/// The table of tables with 64-bit addresses (XSDT, ACPI 6.5, section 5.2.8).
enum ExtendedRoot {
  static func table(_ addresses: [UInt64]) -> [UInt8] {
    var body: [UInt8] = []
    for address in addresses { body.append(littleEndian: address) }
    return TableHeader.table("XSDT", revision: 1, body: body)
  }
}

/// The memory-mapped configuration space table (MCFG; PCI Firmware Specification 3.3, section 4.1.2).
enum ConfigurationSpaceDescription {
  static func table(lastBus: UInt8) -> [UInt8] {
    var body = [UInt8](repeating: 0, count: 8)
    body.append(littleEndian: ACPIPlatform.configurationRange.lowerBound)
    body.append(littleEndian: UInt16(0))  // segment group
    body.append(0)  // first bus
    body.append(lastBus)
    body.append(littleEndian: UInt32(0))
    return TableHeader.table("MCFG", revision: 1, body: body)
  }
}
