import Hardware

/// Encodes the part of ACPI machine language (AML; ACPI 6.5, section 20.2) that the SSDT needs, because the SSDT is
/// built at the start. The code that is the same on every machine is compiled from ASL (Firmware/dsdt.asl).
///
/// The callers write names as in ASL: `\_SB.PCI0`, `S10`. The encoder pads name segments to four characters.
enum MachineLanguage {
  // MARK: Objects

  /// - Parameter value: encoded by `integer` or `quadword`.
  static func name(_ path: String, _ value: [UInt8]) -> [UInt8] { [0x08] + nameString(path) + value }

  static func scope(_ path: String, _ body: [UInt8]) -> [UInt8] { [0x10] + package(nameString(path) + body) }

  static func device(_ path: String, _ body: [UInt8]) -> [UInt8] { [0x5b, 0x82] + package(nameString(path) + body) }

  /// Encodes a method that is not serialized.
  /// - Parameter argumentCount: 0 to 7.
  static func method(_ path: String, argumentCount: UInt8, _ body: [UInt8]) -> [UInt8] {
    [0x14] + package(nameString(path) + [argumentCount & 7] + body)
  }

  // MARK: Statements and terms

  static func call(_ path: String, _ arguments: [UInt8]...) -> [UInt8] { nameString(path) + arguments.joined() }

  static func notify(_ path: String, _ value: [UInt8]) -> [UInt8] { [0x86] + nameString(path) + value }

  static func ifEqual(_ one: [UInt8], _ other: [UInt8], _ body: [UInt8]) -> [UInt8] {
    [0xa0] + package([0x93] + one + other + body)
  }

  /// - Parameter index: 0 to 6.
  static func argument(_ index: UInt8) -> [UInt8] { [0x68 + index] }

  /// Encodes a number in its shortest form.
  static func integer(_ value: UInt64) -> [UInt8] {
    var bytes: [UInt8]
    switch value {
    case 0, 1: return [UInt8(value)]
    case ...0xff:
      bytes = [0x0a, UInt8(value)]
    case ...0xffff:
      bytes = [0x0b]
      bytes.append(littleEndian: UInt16(value))
    case ...0xffff_ffff:
      bytes = [0x0c]
      bytes.append(littleEndian: UInt32(value))
    default: return quadword(value)
    }
    return bytes
  }

  /// Encodes a number in 8 bytes, so that the length does not depend on its value.
  static func quadword(_ value: UInt64) -> [UInt8] {
    var bytes: [UInt8] = [0x0e]
    bytes.append(littleEndian: value)
    return bytes
  }

  // MARK: Encodings

  /// Encodes a NameString (20.2.2).
  static func nameString(_ path: String) -> [UInt8] {
    let prefix = path.utf8.prefix { $0 == UInt8(ascii: "\\") || $0 == UInt8(ascii: "^") }
    let segments = path.utf8.dropFirst(prefix.count).split(separator: UInt8(ascii: "."))
    let padded = segments.flatMap { Array($0) + repeatElement(UInt8(ascii: "_"), count: max(4 - $0.count, 0)) }
    let count: [UInt8] =
      switch segments.count {
      case 0: [0]
      case 1: []
      case 2: [0x2e]
      default: [0x2f, UInt8(truncatingIfNeeded: segments.count)]
      }
    return Array(prefix) + count + padded
  }

  /// Puts PkgLength (20.2.4) before a body. The length includes its own bytes.
  /// - Parameter body: at most 256 MiB.
  static func package(_ body: [UInt8]) -> [UInt8] {
    if body.count + 1 < 1 << 6 { return [UInt8(body.count + 1)] + body }
    // The first byte has four bits of the length. One to three following bytes have eight bits each.
    var following = 1
    while following < 3, body.count + 1 + following >= 1 << (4 + 8 * following) { following += 1 }
    let length = body.count + 1 + following
    let rest = (0..<following).map { UInt8(truncatingIfNeeded: length >> (4 + 8 * $0)) }
    return [UInt8(following << 6 | length & 0xf)] + rest + body
  }
}
