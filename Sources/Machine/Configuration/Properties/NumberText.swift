/// Numbers and sizes in QEMU's spelling (util/cutils.c: `qemu_strtou64`, `qemu_strtosz`).
public enum NumberText {
  /// Parses a decimal number, or a hexadecimal one with 0x. Refuses a leading zero, which means octal in QEMU.
  public static func unsigned(_ text: some Collection<UInt8>) -> UInt64? {
    var digits = text[...]
    var radix: UInt64 = 10
    if digits.first == 0x30, digits.count > 1 {
      guard let second = digits.dropFirst().first, second | 0x20 == 0x78 else { return nil }
      digits = digits.dropFirst(2)
      radix = 16
    }
    return unsigned(digits, radix: radix)
  }

  /// Parses one or more digits of the radix, and nothing else.
  static func unsigned(_ digits: some Collection<UInt8>, radix: UInt64) -> UInt64? {
    if digits.isEmpty { return nil }
    var value: UInt64 = 0
    for byte in digits {
      guard let digit = digit(byte), digit < radix else { return nil }
      let (product, overflow) = value.multipliedReportingOverflow(by: radix)
      let (sum, carry) = product.addingReportingOverflow(digit)
      if overflow || carry { return nil }
      value = sum
    }
    return value
  }

  private static func digit(_ byte: UInt8) -> UInt64? {
    switch byte {
    case 0x30...0x39: UInt64(byte - 0x30)
    case 0x61...0x66: UInt64(byte - 0x61 + 10)
    case 0x41...0x46: UInt64(byte - 0x41 + 10)
    default: nil
    }
  }

  private static let suffixes: [(letter: UInt8, name: String, shift: UInt64)] = [
    (0x65, "E", 60), (0x70, "P", 50), (0x74, "T", 40), (0x67, "G", 30), (0x6d, "M", 20), (0x6b, "K", 10), (0x62, "", 0),
  ]

  /// Parses a size and returns it in bytes: `512`, `1.5G`, `64k`, `0x1000`.
  /// - Parameter unit: the unit of a number without a suffix, in bytes.
  public static func size(_ text: some Collection<UInt8>, unit: UInt64) -> UInt64? {
    if let whole = unsigned(text) {
      let (bytes, overflow) = whole.multipliedReportingOverflow(by: unit)
      return overflow ? nil : bytes
    }
    var number = text[...]
    var scale = unit
    if let last = number.dropFirst(max(0, number.count - 1)).first,
      let suffix = suffixes.first(where: { $0.letter == last | 0x20 })
    {
      number = number.dropLast()
      scale = 1 << suffix.shift
    }
    guard let point = number.firstIndex(of: 0x2e) else {
      // Hexadecimal takes no suffix: its digits include B and E.
      guard let whole = unsigned(number, radix: 10) else { return nil }
      let (bytes, overflow) = whole.multipliedReportingOverflow(by: scale)
      return overflow ? nil : bytes
    }
    let fraction = number[number.index(after: point)...]
    guard let whole = unsigned(number[..<point], radix: 10), let bytes = part(fraction, of: scale) else { return nil }
    let (product, overflow) = whole.multipliedReportingOverflow(by: scale)
    let (sum, carry) = product.addingReportingOverflow(bytes)
    return overflow || carry ? nil : sum
  }

  /// Returns the decimal fraction 0.DIGITS of a scale, rounded down.
  private static func part(_ digits: some Collection<UInt8>, of scale: UInt64) -> UInt64? {
    // 10 to the power of 18 still fits into 64 bits.
    guard digits.count <= 18, let numerator = unsigned(digits, radix: 10) else { return nil }
    var denominator: UInt64 = 1
    for _ in digits { denominator *= 10 }
    // The numerator is less than the denominator, so the quotient is less than the scale.
    return denominator.dividingFullWidth(scale.multipliedFullWidth(by: numerator)).quotient
  }

  static func sizeText(_ bytes: UInt64) -> String {
    for suffix in suffixes where bytes != 0 && bytes & ((1 << suffix.shift) - 1) == 0 {
      return String(bytes >> suffix.shift) + suffix.name
    }
    return String(bytes)
  }
}
