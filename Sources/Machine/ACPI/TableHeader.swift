import Hardware

/// What all description tables start with (ACPI 6.5, 5.2.6), and the checksum that all of them have.
enum TableHeader {
  static let size = 36
  /// OEM ID (6 characters) and OEM Table ID (8 characters): the DSDT's source has the same.
  static let manufacturer = Array("NESTLI".utf8)
  static let model = Array("NESTLING".utf8)

  /// A table of this body, its length and checksum filled in.
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

  /// The byte that makes the sum of all bytes zero, where that byte is zero now.
  static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt8 { 0 &- bytes.reduce(0, &+) }
}
