/// Integers that Jansson, whose integers are signed and of 64 bits, neither reads nor writes. QEMU's go up to 2^64-1
/// (qobject/json-parser.c, `parse_literal`); what is beyond, or below -2^63, is a real number there.
///
/// The text that Jansson reads has a real number of the same length in the place of each, the value that it writes has
/// a signed one. Either is found again by its place among the value's numbers, in the order of the text.
struct WideIntegers {
  /// By their places.
  private var values: [Int: JSONValue] = [:]
  /// How many numbers `next` has passed.
  private var passed = 0

  init() {}

  /// Takes them out of a text, from `position` on.
  /// - Returns: nil where there are none.
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

  /// What a number token means that is an integer out of Int64's range; nil for others, and what no Double holds.
  private static func value(of token: ArraySlice<UInt8>) -> JSONValue? {
    let text = String(decoding: token, as: UTF8.self)
    guard token.dropFirst().allSatisfy(isDigit), Int64(text) == nil else { return nil }
    if let unsigned = UInt64(text) { return .unsigned(unsigned) }
    guard let real = Double(text), real.isFinite else { return nil }
    return .real(real)
  }

  /// The next number of a parsed value, in the order of its text.
  mutating func next(_ parsed: JSONValue) -> JSONValue {
    defer { passed += 1 }
    return values[passed] ?? parsed
  }

  /// The next number of a value to be written.
  /// - Parameter wide: if it is one of these.
  mutating func note(_ wide: UInt64? = nil) {
    if let wide { values[passed] = .unsigned(wide) }
    passed += 1
  }

  /// The written text, with those that were noted.
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

  /// Calls with each number token outside strings. Of what is no JSON it may find anything.
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
