import JSON
import Machine

/// Converts JSON values to the assignments that the tables of properties read.
enum JSONProperties {
  /// Converts the members of a device as QEMU's `device_add` does: a string is valid for any type, and a number or a
  /// boolean counts as its text.
  static func lenient(_ object: JSONObject) throws(MonitorError) -> [PropertyAssignment] {
    var assignments: [PropertyAssignment] = []
    for member in object.members {
      guard let text = text(of: member.value) else { throw .invalidType(member.name, expected: "string") }
      assignments.append(PropertyAssignment(name: member.name, value: text))
    }
    return assignments
  }

  /// - Returns: Nil for null, an array or an object.
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

extension JSONProperties {
  /// Converts one value of any type but null, array and object. Returns nil if there is no value.
  static func lenient(_ value: JSONValue?, _ name: String) throws(MonitorError) -> String? {
    guard let value else { return nil }
    guard let text = text(of: value) else { throw .invalidType(name, expected: "string") }
    return text
  }

  /// Converts the members of an object or a block node as QEMU does: each value must have its property's type.
  static func strict(
    _ object: JSONObject, of kind: any TypedOptions.Type
  ) throws(MonitorError) -> [PropertyAssignment] {
    let properties = kind.propertyDescriptions
    var assignments: [PropertyAssignment] = []
    for member in object.members {
      let property = properties.first { $0.name == member.name || $0.aliases.contains(member.name) }
      guard let property else { throw .generic("Parameter \(ErrorText.quoted(member.name)) is unexpected") }
      let (fits, expected): (Bool, String) =
        switch member.value {
        case .bool: (property.typeName == "bool", property.typeName)
        case .integer, .unsigned: (isNumber(property.typeName), property.typeName)
        case .string: (property.typeName != "bool" && !isNumber(property.typeName), property.typeName)
        case .null, .array, .object, .real: (false, property.typeName)
        }
      guard fits, let text = text(of: member.value) else {
        throw .invalidType(
          member.name, expected: expected == "bool" ? "boolean" : isNumber(expected) ? "integer" : "string")
      }
      assignments.append(PropertyAssignment(name: member.name, value: text))
    }
    return assignments
  }

  static func isNumber(_ typeName: String) -> Bool { typeName.hasPrefix("uint") || typeName == "size" }

  /// Replaces inner objects by members with dotted names: `{"cache": {"direct": true}}` becomes `cache.direct`.
  static func flattened(_ object: JSONObject) throws(MonitorError) -> JSONObject {
    var flat = JSONObject()
    for member in object.members {
      if member.name.contains(".") { throw .generic("Parameter \(ErrorText.quoted(member.name)) is unexpected") }
      guard case .object(let inner) = member.value else {
        flat[member.name] = member.value
        continue
      }
      for part in inner.members { flat[member.name + "." + part.name] = part.value }
    }
    return flat
  }
}
