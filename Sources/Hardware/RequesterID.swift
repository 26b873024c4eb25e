/// A function's address on PCI Express (bus, device, function), which is also the source-id of its requests.
public struct RequesterID: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
  /// bus[15:8] device[7:3] function[2:0]
  public var rawValue: UInt16

  public init(rawValue: UInt16) { self.rawValue = rawValue }

  /// Uses the device modulo 32 and the function modulo 8.
  public init(bus: UInt8, device: UInt8, function: UInt8) {
    rawValue = UInt16(bus) << 8 | UInt16(device & 0x1f) << 3 | UInt16(function & 7)
  }

  public var bus: UInt8 { UInt8(rawValue >> 8) }
  public var device: UInt8 { UInt8(rawValue >> 3 & 0x1f) }
  public var function: UInt8 { UInt8(rawValue & 7) }
  /// Device and function in one byte: the index into VT-d's context tables.
  public var deviceFunction: UInt8 { UInt8(truncatingIfNeeded: rawValue) }

  public static func < (a: RequesterID, b: RequesterID) -> Bool { a.rawValue < b.rawValue }

  /// The address in the format of lspci: `00:02.0`.
  public var description: String {
    func hex(_ value: UInt8) -> String { (value < 16 ? "0" : "") + String(value, radix: 16) }
    return "\(hex(bus)):\(hex(device)).\(function)"
  }
}
