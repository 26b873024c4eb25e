/// An IPv4 address.
public struct IPv4Address: PropertyValue {
  /// The first number of the address is in bits 31:24.
  public let rawValue: UInt32

  public init(rawValue: UInt32) { self.rawValue = rawValue }

  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count == 4 else { throw .notIPv4Address }
    var value: UInt32 = 0
    for part in parts {
      guard part.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let byte = UInt8(part) else { throw .notIPv4Address }
      value = value << 8 | UInt32(byte)
    }
    rawValue = value
  }

  public var text: String { (0..<4).reversed().map { String(rawValue >> (8 * $0) & 0xff) }.joined(separator: ".") }
}

/// An IPv4 network: `10.0.2.0/24`.
public struct IPv4Network: PropertyValue {
  /// The bits after the prefix are 0.
  public let address: IPv4Address
  /// The number of bits that all addresses of the network share, in 4...30.
  public let prefixLength: UInt8

  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    guard parts.count == 2, let address = try? IPv4Address(text: String(parts[0])),
      let length = NumberText.unsigned(parts[1].utf8), let prefixLength = UInt8(exactly: length),
      (4...30).contains(prefixLength)
    else { throw .notIPv4Network }
    self.init(address.rawValue, prefixLength: prefixLength)
  }

  /// - Parameter prefixLength: in 4...30.
  init(_ address: UInt32, prefixLength: UInt8) {
    self.prefixLength = prefixLength
    self.address = IPv4Address(rawValue: address & ~Self.hostMask(prefixLength))
  }

  private static func hostMask(_ prefixLength: UInt8) -> UInt32 { UInt32.max >> UInt32(prefixLength) }

  public var text: String { address.text + "/" + String(prefixLength) }

  /// Returns an address of the network.
  /// - Parameter host: the address's bits after the prefix; higher bits are ignored.
  func address(_ host: UInt32) -> IPv4Address {
    IPv4Address(rawValue: address.rawValue | host & Self.hostMask(prefixLength))
  }

  func contains(_ other: IPv4Address) -> Bool {
    other.rawValue & ~Self.hostMask(prefixLength) == address.rawValue
  }
}

/// A port of the host that leads to a port of the guest: `[tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT`
/// (net/slirp.c, slirp_hostfwd).
public struct HostForward: PropertyValue {
  public enum Transport: String, Sendable {
    case tcp, udp
  }

  public let transport: Transport
  /// The address on which the host listens; nil for all.
  public let hostAddress: IPv4Address?
  public let hostPort: PortNumber
  /// The address to which packets go; nil for the guest's.
  public let guestAddress: IPv4Address?
  public let guestPort: PortNumber

  public static var typeName: String { "str" }

  public init(text: String) throws(ValueError) {
    let fields = text.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
    guard fields.count == 4 else { throw .notHostForward }
    let middle = fields[2].split(separator: "-", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
    guard middle.count == 2 else { throw .notHostForward }
    guard let transport = fields[0].isEmpty ? .tcp : Transport(rawValue: fields[0]) else { throw .notHostForward }
    do throws(ValueError) {
      hostAddress = fields[1].isEmpty ? nil : try IPv4Address(text: fields[1])
      hostPort = try PortNumber(text: middle[0])
      guestAddress = middle[1].isEmpty ? nil : try IPv4Address(text: middle[1])
      guestPort = try PortNumber(text: fields[3])
    } catch {
      throw .notHostForward
    }
    self.transport = transport
  }

  public var text: String {
    "\(transport.rawValue):\(hostAddress?.text ?? ""):\(hostPort.text)-\(guestAddress?.text ?? ""):\(guestPort.text)"
  }

  /// The rule as passt's options `-t` and `-u` take it.
  var passtRule: String { (hostAddress.map { $0.text + "/" } ?? "") + hostPort.text + ":" + guestPort.text }
}
