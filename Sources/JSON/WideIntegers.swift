/// Integers that Jansson can neither read nor write, because its integers are signed 64-bit numbers. QEMU supports
/// integers of up to 2^64-1, and reads larger ones, and ones below -2^63, as real numbers (qobject/json-parser.c,
/// `parse_literal`).
///
/// In a text for Jansson to read, a real number of the same length replaces each such integer. In a value for Jansson
/// to write, a signed integer replaces it. Afterwards the integers are put back by their index among the numbers.
struct WideIntegers {
  /// The integers, by their index among the numbers.
  private var values: [Int: JSONValue] = [:]
  /// The number of numbers that `next` or `note` has counted.
  private var passed = 0

  init() {}

  /// Replaces such integers in a text, from `position` on.
  /// - Returns: Nil if there are none.
  init?(takingFrom text: inout [UInt8], at position: Int) {
    var place = 0
    var found: [(digits: Int, place: Int, value: JSONValue)] = []
    Self.forEachNumber(in: text, from: position) { range in
      defer { place += 1 }
      guard range.count >= 19, let value = Self.value(of: text[range]) else { return }
      found.append((text[range.lowerBound] == Self.minus ? range.lowerBound + 1 : range.lowerBound, place, value))
    }
    if found.isEmpty { return nil }
    for (digits, place, value) in found {
      text[digits + 1] = UInt8(ascii: ".")
      values[place] = value
    }
  }

  /// Returns the value of a number token that is an integer outside Int64; nil for other tokens, and for integers
  /// beyond the range of Double.
  private static func value(of token: ArraySlice<UInt8>) -> JSONValue? {
    let text = String(decoding: token, as: UTF8.self)
    guard token.dropFirst().allSatisfy(isDigit), Int64(text) == nil else { return nil }
    if let unsigned = UInt64(text) { return .unsigned(unsigned) }
    guard let real = Double(text), real.isFinite else { return nil }
    return .real(real)
  }

  /// Returns the next number of a parsed value, in the order of its text.
  mutating func next(_ parsed: JSONValue) -> JSONValue {
    defer { passed += 1 }
    return values[passed] ?? parsed
  }

  /// Counts the next number of a value to write.
  /// - Parameter wide: The number, if Jansson cannot write it.
  mutating func note(_ wide: UInt64? = nil) {
    if let wide { values[passed] = .unsigned(wide) }
    passed += 1
  }

  /// Returns the text that Jansson has written, with the noted integers in it.
  func restored(in text: [UInt8]) -> [UInt8] {
    if values.isEmpty { return text }
    var result: [UInt8] = []
    result.reserveCapacity(text.count + values.count)
    var place = 0
    var done = 0
    Self.forEachNumber(in: text, from: 0) { range in
      if case .unsigned(let number)? = values[place] {
        result += text[done..<range.lowerBound]
        result += String(number).utf8
        done = range.upperBound
      }
      place += 1
    }
    return result + text[done...]
  }

  private static let minus = UInt8(ascii: "-")
  private static func isDigit(_ byte: UInt8) -> Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) }

  /// Calls `body` with each number token outside strings. In a text that is not JSON, the tokens are arbitrary.
  private static func forEachNumber(in text: [UInt8], from position: Int, _ body: (Range<Int>) -> Void) {
    var index = position
    var inString = false
    while index < text.count {
      let byte = text[index]
      let start = index
      index += 1
      switch byte {
      case UInt8(ascii: "\\") where inString: index += 1
      case UInt8(ascii: "\""): inString.toggle()
      case _ where inString: break
      case minus, UInt8(ascii: "0")...UInt8(ascii: "9"):
        while index < text.count, isOfNumber(text[index]) { index += 1 }
        body(start..<index)
      default: break
      }
    }
  }

  private static func isOfNumber(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "+"), minus, UInt8(ascii: "."), UInt8(ascii: "e"), UInt8(ascii: "E"): true
    default: isDigit(byte)
    }
  }
}
