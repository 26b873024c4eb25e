import Hardware

/// The header and the checksum of all description tables (ACPI 6.5, 5.2.6).
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
