import CJansson

/// Parses and writes JSON text (RFC 8259) with the Jansson library.
extension JSONValue {
  /// The reason why a text is not a JSON value.
  public struct ParseError: Error, Hashable, Sendable {
    public let problem: JSONProblem
    /// The position of the error, in bytes.
    public let position: Int
  }

  /// The most levels of nested arrays and objects. The limit is QEMU's (qobject/json-streamer.c); Jansson's is 2048.
  public static let depthLimit = 1024

  /// Parses a text that contains one value and white space. A name that occurs twice in an object is an error.
  public init(parsing text: [UInt8]) throws(ParseError) {
    var position = 0
    self = try Self.next(in: text, at: &position)
    while position < text.count, [0x20, 0x09, 0x0a, 0x0d].contains(text[position]) { position += 1 }
    if position < text.count { throw ParseError(problem: .textAfterValue, position: position) }
  }

  /// Parses one value and ignores the text after it.
  /// - Parameter position: The start of the value; after the call, its end.
  public static func next(in text: [UInt8], at position: inout Int) throws(ParseError) -> JSONValue {
    guard position >= 0, position < text.count else { throw ParseError(problem: .expectingValue, position: position) }
    var error = json_error_t()
    var wide = WideIntegers()
    var parsed = unsafe parse(text, position, &error)
    // SAFETY: Jansson has initialized the error.
    if unsafe parsed == nil, unsafe json_error_code(&error) == json_error_numeric_overflow {
      var narrowed = text
      if let taken = WideIntegers(takingFrom: &narrowed, at: position) {
        wide = taken
        unsafe parsed = parse(narrowed, position, &error)
      }
    }
    guard let parsed = unsafe parsed else {
      // SAFETY: Jansson ends the text with a zero byte.
      let reason = unsafe withUnsafeBytes(of: &error.text) { bytes in
        unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      throw ParseError(problem: .malformed(reason), position: position + max(0, Int(error.position)))
    }
    // SAFETY: this function owns the reference and releases it once.
    defer { unsafe json_decref(parsed) }
    guard let value = unsafe convert(parsed, depth: 0, &wide) else {
      throw ParseError(problem: .tooDeep, position: position)
    }
    position += Int(error.position)
    return value
  }

  /// - Returns: A reference that the caller must release; nil for an error.
  private static func parse(
    _ text: [UInt8], _ position: Int, _ error: inout json_error_t
  ) -> UnsafeMutablePointer<json_t>? {
    let flags = JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK | JSON_DECODE_ANY | JSON_ALLOW_NUL
    // SAFETY: the position is inside the array, and the count is the number of bytes from there to its end.
    return unsafe text.withUnsafeBytes { bytes in
      unsafe json_loadb(bytes.baseAddress! + position, bytes.count - position, Int(flags), &error)
    }
  }

  /// Returns the value as text in QEMU's layout, `{"name": [1, 2]}`, in ASCII only and without a newline at the end.
  /// - Parameter pretty: Whether to write several lines, indented by four spaces.
  public func text(pretty: Bool = false) -> [UInt8] {
    var wide = WideIntegers()
    guard let built = unsafe build(depth: 0, &wide) else { return Array("null".utf8) }
    // SAFETY: this function owns the reference and releases it once.
    defer { unsafe json_decref(built) }
    var flags = Int(JSON_ENCODE_ANY | JSON_ENSURE_ASCII)
    if pretty { flags |= 4 }
    // SAFETY: the first call writes nothing and returns the length. The buffer of the second call has that length.
    var text = [UInt8](repeating: 0, count: unsafe json_dumpb(built, nil, 0, flags))
    _ = unsafe text.withUnsafeMutableBytes { unsafe json_dumpb(built, $0.baseAddress, $0.count, flags) }
    return wide.restored(in: text)
  }

  /// - Returns: Nil if the value is nested too deeply.
  private static func convert(
    _ json: UnsafeMutablePointer<json_t>, depth: Int, _ wide: inout WideIntegers
  ) -> JSONValue? {
    guard depth <= depthLimit else { return nil }
    // SAFETY, for the whole switch: the type decides which calls are allowed. The value owns what they return.
    switch unsafe json.pointee.type {
    case JSON_NULL: return .null
    case JSON_TRUE: return .bool(true)
    case JSON_FALSE: return .bool(false)
    case JSON_INTEGER: return unsafe wide.next(.integer(json_integer_value(json)))
    case JSON_REAL: return unsafe wide.next(.real(json_real_value(json)))
    case JSON_STRING: return unsafe .string(string(json_string_value(json), json_string_length(json)))
    case JSON_ARRAY:
      var elements: [JSONValue] = []
      let count = unsafe json_array_size(json)
      elements.reserveCapacity(count)
      for index in 0..<count {
        guard let element = unsafe json_array_get(json, index),
          let value = unsafe convert(element, depth: depth + 1, &wide)
        else { return nil }
        elements.append(value)
      }
      return .array(elements)
    case JSON_OBJECT:
      var object = JSONObject()
      var place = unsafe json_object_iter(json)
      while let here = unsafe place {
        guard let member = unsafe json_object_iter_value(here),
          let value = unsafe convert(member, depth: depth + 1, &wide)
        else { return nil }
        unsafe object.append(string(json_object_iter_key(here), json_object_iter_key_len(here)), value)
        unsafe place = json_object_iter_next(json, here)
      }
      return .object(object)
    default: return nil
    }
  }

  private static func string(_ start: UnsafePointer<CChar>?, _ count: Int) -> String {
    // SAFETY: Jansson supplies the length of the string, whose UTF-8 it has checked.
    unsafe String(
      decoding: UnsafeBufferPointer(start: start, count: count).lazy.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// - Returns: A reference that the caller must release; nil if there is no memory or the value is nested too deeply.
  private func build(depth: Int, _ wide: inout WideIntegers) -> UnsafeMutablePointer<json_t>? {
    guard depth <= Self.depthLimit else { return nil }
    // SAFETY, for the whole switch: the strings outlive the calls, which copy them. json_array_append_new and
    // json_object_setn_new take over the reference of the element. They accept nil, and fail then.
    switch self {
    case .null: return unsafe json_null()
    case .bool(let value): return unsafe value ? json_true() : json_false()
    case .integer(let value):
      wide.note()
      return unsafe json_integer(value)
    case .unsigned(let value):
      wide.note(value)
      return unsafe json_integer(Int64(bitPattern: value))
    case .real(let value):
      wide.note()
      return unsafe json_real(value.isFinite ? value : 0)
    case .string(let value):
      let characters = Self.characters(value)
      return unsafe json_stringn(characters, characters.count - 1)
    case .array(let elements):
      guard let array = unsafe json_array() else { return nil }
      for element in elements where unsafe json_array_append_new(array, element.build(depth: depth + 1, &wide)) != 0 {
        unsafe json_decref(array)
        return nil
      }
      return unsafe array
    case .object(let object):
      guard let built = unsafe json_object() else { return nil }
      for member in object.members {
        let name = Self.characters(member.name)
        let failed = unsafe json_object_setn_new(
          built, name, name.count - 1, member.value.build(depth: depth + 1, &wide))
        if failed != 0 {
          unsafe json_decref(built)
          return nil
        }
      }
      return unsafe built
    }
  }

  /// Returns a C string: the text and a zero byte.
  private static func characters(_ text: String) -> [CChar] { text.utf8.map { CChar(bitPattern: $0) } + [0] }
}
