import Hardware

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
