import JSON
import Machine

/// JSON values as the assignments that the tables of properties read.
enum JSONProperties {
  /// As QEMU takes a device's: a string will do for any type, and a number or a boolean is its text.
  static func lenient(_ object: JSONObject) throws(MonitorError) -> [PropertyAssignment] {
    var assignments: [PropertyAssignment] = []
    for member in object.members {
      guard let text = text(of: member.value) else { throw .invalidType(member.name, expected: "string") }
      assignments.append(PropertyAssignment(name: member.name, value: text))
    }
    return assignments
  }

  /// - Returns: nil for what is no single value.
  static func text(of value: JSONValue) -> String? {
    switch value {
    case .string(let text): text
    case .bool(let flag): flag.text
    case .integer(let number): String(number)
    case .unsigned(let number): String(number)
    case .real(let number): String(number)
    case .null, .array, .object: nil
    }
  }
}
