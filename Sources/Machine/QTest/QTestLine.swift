/// Parses one line of the qtest protocol (QEMU's system/qtest.c), word by word. Spaces separate the words.
struct QTestLine {
  /// The error in a command. QEMU aborts for most of these errors; Nestling answers with an error line.
  enum Problem: Error, Hashable {
    case missingArgument
    case notNumber(String)
    case notHexadecimal
    case size
    case port(UInt64)
    case tooLong
  }

  private let words: [ArraySlice<UInt8>]
  private var next = 0

  init(_ line: ArraySlice<UInt8>) { words = line.split(separator: UInt8(ascii: " ")) }

  /// Returns the next word; nil at the end of the line.
  mutating func word() -> ArraySlice<UInt8>? {
    guard next < words.count else { return nil }
    defer { next += 1 }
    return words[next]
  }

  mutating func required() throws(Problem) -> ArraySlice<UInt8> {
    guard let word = word() else { throw .missingArgument }
    return word
  }

  /// Returns the next word as text for an answer: at most 80 characters, with `?` for those that are not printable
  /// ASCII.
  mutating func text() throws(Problem) -> String { Self.text(try required()) }

  static func text(_ word: ArraySlice<UInt8>) -> String {
    String(decoding: word.prefix(80).map { (0x20..<0x7f).contains($0) ? $0 : UInt8(ascii: "?") }, as: UTF8.self)
  }

  /// Parses the whole next word as strtoull(3) does with base 0: decimal, hexadecimal after `0x`, octal after `0`. A
  /// minus sign negates the value modulo 2^64.
  mutating func number() throws(Problem) -> UInt64 {
    let word = try required()
    guard let value = Self.number(word) else { throw .notNumber(Self.text(word)) }
    return value
  }

  /// Parses the next word as a signed number; nil at the end of the line.
  mutating func optionalSignedNumber() throws(Problem) -> Int64? {
    guard next < words.count else { return nil }
    return try signedNumber()
  }

  mutating func signedNumber() throws(Problem) -> Int64 {
    let word = try required()
    let negative = word.first == UInt8(ascii: "-")
    guard let value = Self.magnitude(word.dropFirst(negative ? 1 : 0)),
      value <= UInt64(Int64.max) + (negative ? 1 : 0)
    else { throw .notNumber(Self.text(word)) }
    return Int64(truncatingIfNeeded: negative ? 0 &- value : value)
  }

  private static func number(_ word: ArraySlice<UInt8>) -> UInt64? {
    switch word.first {
    case UInt8(ascii: "-"): magnitude(word.dropFirst()).map { 0 &- $0 }
    case UInt8(ascii: "+"): magnitude(word.dropFirst())
    default: magnitude(word)
    }
  }

  private static func magnitude(_ digits: ArraySlice<UInt8>) -> UInt64? {
    var digits = digits
    var radix: UInt64 = 10
    if digits.first == UInt8(ascii: "0"), digits.count > 1 {
      digits = digits.dropFirst()
      radix = 8
      if let mark = digits.first, mark | 0x20 == UInt8(ascii: "x") {
        digits = digits.dropFirst()
        radix = 16
      }
    }
    guard !digits.isEmpty else { return nil }
    var value: UInt64 = 0
    for character in digits {
      guard let digit = nibble(character), UInt64(digit) < radix else { return nil }
      let (product, overflows) = value.multipliedReportingOverflow(by: radix)
      let (sum, carries) = product.addingReportingOverflow(UInt64(digit))
      if overflows || carries { return nil }
      value = sum
    }
    return value
  }

  static func nibble(_ character: UInt8) -> UInt8? {
    switch character {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): character - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): character - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): character - UInt8(ascii: "A") + 10
    default: nil
    }
  }
}

/// Splits a client's bytes into lines. A line that is too long is skipped up to its end, and returned as `.tooLong`.
struct QTestLines {
  enum Piece: Equatable {
    case line(ArraySlice<UInt8>)
    /// A line that is longer than the limit.
    case tooLong
  }

  private let limit: Int
  private var buffer: [UInt8] = []
  /// The index at which the next line starts.
  private var start = 0
  /// The index up to which there is no newline in the next line.
  private var searched = 0
  private var isSkipping = false

  /// - Parameter limit: bytes of the longest line, without its newline.
  init(limit: Int) { self.limit = limit }

  mutating func append(_ bytes: some Sequence<UInt8>) {
    if start > 0 {
      buffer.removeFirst(start)
      searched -= start
      start = 0
    }
    buffer += bytes
  }

  /// Returns the next line; nil until the whole line is there.
  mutating func next() -> Piece? {
    guard let end = buffer[searched...].firstIndex(of: UInt8(ascii: "\n")) else {
      searched = buffer.count
      if searched - start > limit {
        isSkipping = true
        start = searched
      }
      return nil
    }
    let line = buffer[start..<end]
    let isTooLong = isSkipping || line.count > limit
    start = end + 1
    searched = start
    isSkipping = false
    return isTooLong ? .tooLong : .line(line)
  }
}
