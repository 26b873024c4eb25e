import Hardware

/// A value of a property, with its text form: QEMU's spelling of booleans, numbers, sizes and names (qapi/string input
/// visitor, util/cutils.c).
public protocol PropertyValue: Sendable, Hashable {
  /// The type's name, which help prints between `<` and `>`.
  static var typeName: String { get }
  init(text: String) throws(ValueError)
  /// The value as a user types it.
  var text: String { get }
}

/// The reason why a text is not a value of a property. The enclosing error holds the text.
public enum ValueError: Error, Hashable, Sendable {
  case notBoolean
  /// A whole number: decimal, or hexadecimal with 0x.
  case notNumber
  /// A number with an optional suffix B, K, M, G, T, P or E.
  case notSize
  case outOfRange(lowest: UInt64, highest: UInt64)
  case notPowerOfTwo(lowest: UInt64, highest: UInt64)
  case notOneOf([String])
  /// Device and optional function, hexadecimal: 06 or 06.0.
  case notPCIAddress
  /// A letter, then letters, digits, `-`, `.`, `_`.
  case notIdentifier
  /// Six bytes, hexadecimal: 52:54:00:12:34:56.
  case notMACAddress
  /// Four numbers up to 255: 10.0.2.15.
  case notIPv4Address
  /// An address and the number of its network bits, 4 to 30: 10.0.2.0/24.
  case notIPv4Network
  /// [tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT.
  case notHostForward
  case tooLong(bytes: Int)
  case empty
  /// A known value that is not supported. The reason comes from the table of properties.
  case refused(reason: String)
}

extension Bool: PropertyValue {
  public static var typeName: String { "bool" }

  public init(text: String) throws(ValueError) {
    switch text {
    case "on", "yes", "true", "y": self = true
    case "off", "no", "false", "n": self = false
    default: throw .notBoolean
    }
  }

  public var text: String { self ? "on" : "off" }
}

public enum OnOffAuto: String, CaseIterable, PropertyValue {
  case on, off, auto

  public static var typeName: String { "OnOffAuto" }

  public init(text: String) throws(ValueError) {
    if text == "auto" {
      self = .auto
    } else if let value = try? Bool(text: text) {
      self = value ? .on : .off
    } else {
      throw .notOneOf(Self.allCases.map(\.rawValue))
    }
  }

  public var text: String { rawValue }
}

extension Bool? {
  /// The value as a property of the type `OnOffAuto`: nil is `auto`.
  var onOffAuto: OnOffAuto {
    get { map { $0 ? .on : .off } ?? .auto }
    set { self = newValue == .auto ? nil : newValue == .on }
  }
}

extension Int {
  /// The number as a property of the type `uint8`.
  var uint8: UInt8 {
    get { UInt8(clamping: self) }
    set { self = Int(newValue) }
  }

  /// The number of bytes as a property of the type `size`.
  var size: ByteCount {
    get { ByteCount(UInt64(clamping: self)) }
    set { self = Int(clamping: newValue.bytes) }
  }
}

extension UInt64? {
  /// The number of bytes as a property of the type `size`.
  var size: ByteCount? {
    get { map { ByteCount($0) } }
    set { self = newValue?.bytes }
  }
}

extension PropertyValue where Self: FixedWidthInteger & UnsignedInteger {
  public static var typeName: String { "uint\(Self.bitWidth)" }

  public init(text: String) throws(ValueError) {
    guard let number = NumberText.unsigned(text.utf8) else { throw .notNumber }
    guard let value = Self(exactly: number) else { throw .outOfRange(lowest: 0, highest: UInt64(Self.max)) }
    self = value
  }

  public var text: String { String(self) }
}

extension UInt8: PropertyValue {}
extension UInt16: PropertyValue {}
extension UInt32: PropertyValue {}
extension UInt64: PropertyValue {}

extension String: PropertyValue {
  public static var typeName: String { "str" }
  public init(text: String) throws(ValueError) { self = text }
  public var text: String { self }
}

/// A name that other options refer to.
public struct Identifier: PropertyValue, CustomStringConvertible {
  public let text: String

  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    func isLetter(_ byte: UInt8) -> Bool { (0x41...0x5a).contains(byte & 0xdf) }
    guard let first = text.utf8.first, isLetter(first),
      text.utf8.allSatisfy({ isLetter($0) || (0x30...0x39).contains($0) || [0x2d, 0x2e, 0x5f].contains($0) })
    else { throw .notIdentifier }
    self.text = text
  }

  private init(generated text: String) { self.text = text }

  /// The id of a netdev to which the user gives none, in QEMU's form (util/id.c, id_generate): `#net0`. No user can give
  /// the same id.
  public static func generatedForNetdev(_ number: Int) -> Self { Self(generated: "#net\(number)") }

  public var description: String { text }
}

/// A number of bytes.
public struct ByteCount: PropertyValue, Comparable, ExpressibleByIntegerLiteral {
  public var bytes: UInt64

  public init(_ bytes: UInt64) { self.bytes = bytes }
  public init(integerLiteral value: UInt64) { bytes = value }

  public static var typeName: String { "size" }

  public init(text: String) throws(ValueError) {
    guard let bytes = NumberText.size(text.utf8, unit: 1) else { throw .notSize }
    self.bytes = bytes
  }

  /// The number in the largest unit that divides it.
  public var text: String { NumberText.sizeText(bytes) }

  public static func < (a: ByteCount, b: ByteCount) -> Bool { a.bytes < b.bytes }
}

/// A value out of a few words.
public protocol ChoiceValue: PropertyValue, CaseIterable, RawRepresentable where RawValue == String {}

extension ChoiceValue {
  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    guard let value = Self(rawValue: text) else { throw .notOneOf(Self.allCases.map(\.rawValue)) }
    self = value
  }

  public var text: String { rawValue }
}

/// `addr=`: device and optional function on bus 0, hexadecimal, as in QEMU (hw/core/qdev-properties-system.c).
extension RequesterID: PropertyValue {
  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    func hexadecimal(_ text: Substring) -> UInt64? {
      NumberText.unsigned((text.hasPrefix("0x") ? text.dropFirst(2) : text).utf8, radix: 16)
    }
    let parts = text.split(separator: ".", maxSplits: 1, omittingEmptySubsequences: false)
    guard let first = parts.first, let device = hexadecimal(first), device < 32 else { throw .notPCIAddress }
    var function: UInt64 = 0
    if parts.count == 2 {
      guard let value = hexadecimal(parts[1]), value < 8 else { throw .notPCIAddress }
      function = value
    }
    self.init(bus: 0, device: UInt8(device), function: UInt8(function))
  }

  public var text: String { String(description.dropFirst(3)) }
}

/// Ids or addresses of devices, joined by `+`, because a comma would end the property.
public struct DeviceNames: PropertyValue {
  /// The names, at least one.
  public let names: [String]

  public static var typeName: String { "list" }

  public init(text: String) throws(ValueError) {
    names = text.split(separator: "+", omittingEmptySubsequences: false).map(String.init)
    if names.contains("") { throw .empty }
  }

  public var text: String { names.joined(separator: "+") }
}
