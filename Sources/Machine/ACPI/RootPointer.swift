import Hardware

/// The root pointer (RSDP, ACPI 6.5, 5.2.5.3), from which an operating system finds all tables.
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

/// The table of tables with 64-bit addresses (XSDT, ACPI 6.5, 5.2.8).
enum ExtendedRoot {
  static func table(_ addresses: [UInt64]) -> [UInt8] {
    var body: [UInt8] = []
    for address in addresses { body.append(littleEndian: address) }
    return TableHeader.table("XSDT", revision: 1, body: body)
  }
}
