import Hardware

/// An Ethernet address as a number; the byte that is first on the wire is the most significant of six.
public struct MACAddress: RawRepresentable, Hashable, Sendable {
  public let rawValue: UInt64

  public init(rawValue: UInt64) { self.rawValue = rawValue & 0xffff_ffff_ffff }

  static let broadcast = MACAddress(rawValue: 0xffff_ffff_ffff)

  /// Decodes six bytes.
  init(_ bytes: [UInt8], at offset: Int) {
    self.init(rawValue: (0..<6).reduce(0) { $0 << 8 | UInt64(bytes[offset + $1]) })
  }

  /// The six bytes as they are on the wire.
  public var bytes: [UInt8] { (0..<6).map { rawValue[byte: 5 - $0] } }

  /// Whether the address is a group address; the broadcast address is one.
  public var isMulticast: Bool { rawValue[bit: 40] }
}
