import Hardware

/// ACPI machine language (AML; ACPI 6.5, 20.2) as bytes: as much of it as the table that is made at start needs. What is
/// the same on every machine is written as ASL and compiled (Firmware/dsdt.asl).
///
/// Names are given as in ASL: `\_SB.PCI0`, `S10`. Segments are padded to four characters.
enum MachineLanguage {
  // MARK: Objects

  /// - Parameter value: as `integer` or `quadword` give it.
  static func name(_ path: String, _ value: [UInt8]) -> [UInt8] { [0x08] + nameString(path) + value }

  static func scope(_ path: String, _ body: [UInt8]) -> [UInt8] { [0x10] + package(nameString(path) + body) }

  static func device(_ path: String, _ body: [UInt8]) -> [UInt8] { [0x5b, 0x82] + package(nameString(path) + body) }

  /// NotSerialized.
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

  /// In the shortest form.
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

  /// Always of the same length.
  static func quadword(_ value: UInt64) -> [UInt8] {
    var bytes: [UInt8] = [0x0e]
    bytes.append(littleEndian: value)
    return bytes
  }

  // MARK: Encodings

  /// NameString (20.2.2).
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

  /// PkgLength (20.2.4) and what it is the length of, itself included.
  /// - Parameter body: at most 256 MiB.
  static func package(_ body: [UInt8]) -> [UInt8] {
    if body.count + 1 < 1 << 6 { return [UInt8(body.count + 1)] + body }
    // Four bits in the first byte, eight in each of the one to three that follow.
    var following = 1
    while following < 3, body.count + 1 + following >= 1 << (4 + 8 * following) { following += 1 }
    let length = body.count + 1 + following
    let rest = (0..<following).map { UInt8(truncatingIfNeeded: length >> (4 + 8 * $0)) }
    return [UInt8(following << 6 | length & 0xf)] + rest + body
  }
}
