/// The reason why bytes are not a JSON value.
public enum JSONProblem: Hashable, Sendable {
  /// The bytes end within a value, or a token begins no value.
  case expectingValue
  /// A byte that JSON does not allow.
  case stray(UInt8)
  case tooLong, tooDeep
  case textAfterValue
  /// The value is malformed. The text is Jansson's.
  case malformed(String)
}

/// Splits a stream of bytes, which arrives in pieces, into JSON values. A QMP message ends where its JSON value ends.
/// The stream inspects each byte once, and stores at most `sizeLimit` bytes of an unfinished value.
///
/// Errors and recovery are QEMU's (qobject/json-lexer.c, json-streamer.c): a byte that JSON does not allow, a control
/// character in a string, or a limit that is exceeded ends the value; the next control character, quote or bracket
/// starts a new one. Of QEMU's extensions, strings in single quotes are supported and `%` interpolation is not.
public struct JSONStream: Sendable {
  public enum Item: Hashable, Sendable {
    case value(JSONValue)
    case error(JSONProblem)
  }

  private enum State {
    /// Between values.
    case start
    /// Inside a value, but not inside a string.
    case inside
    /// Inside a word that is a whole value: `null`, `12`.
    case word
    case string(quote: UInt8, returning: Outer)
    case escape(quote: UInt8, returning: Outer)
    case recovery
  }

  /// The position of a string: between values, or inside a value.
  private enum Outer {
    case top, inside
  }

  /// The size limit of one value, in bytes.
  public let sizeLimit: Int
  public let depthLimit: Int

  private var state = State.start
  private var bytes: [UInt8] = []
  private var braces = 0
  private var brackets = 0

  public init(sizeLimit: Int = 1 << 20, depthLimit: Int = JSONValue.depthLimit) {
    self.sizeLimit = sizeLimit
    self.depthLimit = min(depthLimit, JSONValue.depthLimit)
  }

  /// Parses the next bytes of the stream.
  /// - Parameter emit: Receives each value and each error, in order. Returns false to stop for now.
  /// - Returns: The number of bytes that were used. The caller passes the rest again later.
  @discardableResult
  public mutating func receive(_ input: some Sequence<UInt8>, _ emit: (Item) -> Bool) -> Int {
    var used = 0
    for byte in input {
      let item = take(byte)
      // The byte that ends a word is not part of it.
      if pendingByte {
        pendingByte = false
        if let item, !emit(item) { return used }
        used += 1
        if let item = take(byte), !emit(item) { return used }
      } else {
        used += 1
        if let item, !emit(item) { return used }
      }
    }
    return used
  }

  /// Ends the stream.
  /// - Returns: An error if a value is unfinished, or a last word, which is complete only now.
  public mutating func finish() -> Item? {
    defer { reset() }
    switch state {
    case .start, .recovery: return nil
    case .word: return parsed()
    case .inside, .string, .escape: return .error(.expectingValue)
    }
  }

  private mutating func reset() {
    state = .start
    bytes.removeAll()
    braces = 0
    brackets = 0
    pendingByte = false
  }

  private var pendingByte = false

  private mutating func take(_ byte: UInt8) -> Item? {
    switch state {
    case .start: return begin(byte)
    case .inside: return inside(byte)
    case .word:
      if Self.isWord(byte) { return keep(byte) }
      pendingByte = true
      return parsed()
    case .string(let quote, let outer): return string(byte, quote, outer)
    case .escape(let quote, let outer):
      state = .string(quote: quote, returning: outer)
      if byte < 0x20 || byte >= 0xfe { return stray(byte) }
      // JSON has no escape for the single quote, which needs none.
      if byte == UInt8(ascii: "'") { bytes.removeLast() }
      return keep(byte)
    case .recovery:
      if Self.endsRecovery(byte) {
        reset()
        return byte < 0x20 || byte >= 0xfe ? nil : begin(byte)
      }
      return nil
    }
  }

  private mutating func begin(_ byte: UInt8) -> Item? {
    if Self.isSpace(byte) { return nil }
    switch byte {
    case Self.quote, Self.singleQuote:
      state = .string(quote: byte, returning: .top)
      return keep(Self.quote)
    case UInt8(ascii: "{"), UInt8(ascii: "["):
      state = .inside
      return inside(byte)
    case UInt8(ascii: "}"), UInt8(ascii: "]"), UInt8(ascii: ","), UInt8(ascii: ":"):
      // A token that begins no value. The next byte may begin one.
      return .error(.expectingValue)
    default:
      guard Self.isWord(byte) else { return stray(byte) }
      state = .word
      return keep(byte)
    }
  }

  private mutating func inside(_ byte: UInt8) -> Item? {
    switch byte {
    case Self.quote, Self.singleQuote:
      state = .string(quote: byte, returning: .inside)
      return keep(Self.quote)
    case UInt8(ascii: "{"): braces += 1
    case UInt8(ascii: "}"): braces -= 1
    case UInt8(ascii: "["): brackets += 1
    case UInt8(ascii: "]"): brackets -= 1
    default:
      guard Self.isSpace(byte) || Self.isWord(byte) || byte == UInt8(ascii: ",") || byte == UInt8(ascii: ":") else {
        return stray(byte)
      }
    }
    if braces + brackets > depthLimit { return limit(.tooDeep) }
    if let error = keep(byte) { return error }
    // All brackets are closed, or there is one closing bracket too many. The parser finds out which.
    if braces < 0 || brackets < 0 || braces == 0 && brackets == 0 { return parsed() }
    return nil
  }

  private mutating func string(_ byte: UInt8, _ quote: UInt8, _ outer: Outer) -> Item? {
    switch byte {
    case quote:
      if let error = keep(Self.quote) { return error }
      if outer == .top { return parsed() }
      state = .inside
      return nil
    case Self.quote:
      // A double quote inside single quotes must be escaped in JSON.
      return keep(UInt8(ascii: "\\")) ?? keep(byte)
    case UInt8(ascii: "\\"):
      state = .escape(quote: quote, returning: outer)
      return keep(byte)
    case ..<0x20, 0xfe...: return stray(byte)
    default: return keep(byte)
    }
  }

  private mutating func keep(_ byte: UInt8) -> Item? {
    guard bytes.count < sizeLimit else { return limit(.tooLong) }
    bytes.append(byte)
    return nil
  }

  private mutating func parsed() -> Item {
    let text = bytes
    let pending = pendingByte
    reset()
    pendingByte = pending
    do {
      return .value(try JSONValue(parsing: text))
    } catch {
      return .error(error.problem)
    }
  }

  /// Handles a byte that JSON does not allow.
  private mutating func stray(_ byte: UInt8) -> Item {
    reset()
    // A control character ends both the value and the recovery.
    if byte >= 0x20, byte < 0xfe { state = .recovery }
    return .error(.stray(byte))
  }

  private mutating func limit(_ problem: JSONProblem) -> Item {
    reset()
    state = .recovery
    return .error(problem)
  }

  private static let quote = UInt8(ascii: "\"")
  private static let singleQuote = UInt8(ascii: "'")

  private static func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || byte == 0x09 || byte == 0x0a || byte == 0x0d }

  /// Whether a byte can be part of a number or of `true`, `false` or `null`.
  private static func isWord(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "+"), UInt8(ascii: "-"), UInt8(ascii: "."),
      UInt8(ascii: "_"):
      true
    default: false
    }
  }

  private static func endsRecovery(_ byte: UInt8) -> Bool {
    switch byte {
    case ..<0x20, 0xfe...: true
    case quote, singleQuote, UInt8(ascii: "["), UInt8(ascii: "]"), UInt8(ascii: "{"), UInt8(ascii: "}"),
      UInt8(ascii: ":"), UInt8(ascii: ","):
      true
    default: false
    }
  }
}
