import Machine

/// Parses QEMU's option strings, `word,name=value,name` (util/qemu-option.c): a comma within a value is written twice,
/// the first name may be implied, and a bare name is a flag.
enum OptionString {
  /// - Parameter impliedName: If the first word has no `=`, it is the value of this name.
  /// - Throws: Only `emptyName`.
  static func assignments(_ text: String, impliedName: String? = nil) throws(OptionProblem) -> [PropertyAssignment] {
    let bytes = Array(text.utf8)
    var assignments: [PropertyAssignment] = []
    var position = 0
    while position < bytes.count {
      let nameEnd = bytes[position...].firstIndex { $0 == equals || $0 == comma } ?? bytes.count
      let hasValue = nameEnd < bytes.count && bytes[nameEnd] == equals
      if !hasValue, position == 0, let impliedName {
        assignments.append(PropertyAssignment(name: impliedName, value: value(in: bytes, at: &position)))
        continue
      }
      let name = String(decoding: bytes[position..<nameEnd], as: UTF8.self)
      position = nameEnd + 1
      if hasValue {
        if name.isEmpty { throw .emptyName }
        assignments.append(PropertyAssignment(name: name, value: value(in: bytes, at: &position)))
      } else if !name.isEmpty {
        assignments.append(PropertyAssignment(name: name, value: nil))
      }
    }
    return assignments
  }

  /// Consumes a value and the comma that ends it.
  private static func value(in bytes: [UInt8], at position: inout Int) -> String {
    var value: [UInt8] = []
    while position < bytes.count {
      if bytes[position] == comma {
        position += 1
        guard position < bytes.count, bytes[position] == comma else { break }
      }
      value.append(bytes[position])
      position += 1
    }
    return String(decoding: value, as: UTF8.self)
  }

  private static let comma = UInt8(ascii: ",")
  private static let equals = UInt8(ascii: "=")
}
