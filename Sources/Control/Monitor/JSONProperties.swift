import JSON
import Machine

/// Converts JSON values to the assignments that the tables of properties read.
enum JSONProperties {
  /// Converts the members of a device as QEMU's `device_add` does: a string is valid for any type, and a number or a
  /// boolean counts as its text.
  static func lenient(_ object: JSONObject) throws(MonitorError) -> [PropertyAssignment] {
    try assignments(object) { (member) throws(MonitorError) in try lenient(member.value, member.name) }
  }

  /// Converts one value of any type but null, array and object. Returns nil if there is no value.
  static func lenient(_ value: JSONValue?, _ name: String) throws(MonitorError) -> String? {
    guard let value else { return nil }
    guard let text = text(of: value) else { throw .invalidType(name, expected: "string") }
    return text
  }

  /// Converts the members of an object or a block node as QEMU does: each value must have its property's type.
  static func strict(
    _ object: JSONObject, of type: any TypedOptions.Type
  ) throws(MonitorError) -> [PropertyAssignment] {
    let typeNames = typeNames(of: type)
    return try assignments(object) { (member) throws(MonitorError) in
      guard let typeName = typeNames[member.name] else {
        throw .generic("Parameter \(ErrorText.quoted(member.name)) is unexpected")
      }
      let fits =
        switch member.value {
        case .bool: typeName == "bool"
        case .integer, .unsigned: isNumber(typeName)
        case .string: typeName != "bool" && !isNumber(typeName) && typeName != PropertyDescription.listType
        case .null, .array, .object, .real: false
        }
      guard fits, let text = text(of: member.value) else { throw .invalidType(member.name, expected: kind(typeName)) }
      return text
    }
  }

  /// Converts the members of a device on the command line: each value must have its property's type. A member that
  /// names no property passes here and fails when the device type sets it.
  static func typed(_ object: JSONObject, of type: any TypedOptions.Type) throws(MonitorError) -> [PropertyAssignment] {
    let typeNames = typeNames(of: type)
    return try assignments(object) { (member) throws(MonitorError) in
      guard let typeName = typeNames[member.name] else { return "" }
      if member.name == "addr" { return try addressText(member) }
      switch (typeName, member.value) {
      case ("bool", .bool(let flag)): return flag.text
      case ("bool", _): throw .invalidType(member.name, expected: "boolean")
      case (_, .integer), (_, .unsigned):
        guard isNumber(typeName), let text = text(of: member.value) else {
          throw .invalidType(member.name, expected: "string")
        }
        return text
      case (_, .string(let text)) where !isNumber(typeName): return text
      case (_, _) where isNumber(typeName): throw .generic("Parameter '\(member.name)' expects uint64")
      default: throw .invalidType(member.name, expected: "string")
      }
    }
  }

  /// Removes the arrays of properties that may be given several times. Their elements are objects with a member `str`
  /// (String, qapi/common.json).
  /// - Returns: one assignment for each element.
  static func takeLists(
    from object: inout JSONObject, of type: any TypedOptions.Type
  ) throws(MonitorError) -> [PropertyAssignment] {
    var assignments: [PropertyAssignment] = []
    for property in type.propertyDescriptions where property.typeName == PropertyDescription.listType {
      guard case .array(let elements)? = object[property.name] else { continue }
      for (index, element) in elements.enumerated() {
        let name = "\(property.name)[\(index)]"
        guard case .object(let members) = element else { throw .invalidType(name, expected: "object") }
        guard let value = members["str"] else { throw .generic("Parameter '\(name).str' is missing") }
        guard case .string(let text) = value else { throw .invalidType(name + ".str", expected: "string") }
        assignments.append(PropertyAssignment(name: property.name, value: text))
      }
      object[property.name] = nil
    }
    return assignments
  }

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

  private static func assignments(
    _ object: JSONObject, _ text: (JSONObject.Member) throws(MonitorError) -> String?
  ) throws(MonitorError) -> [PropertyAssignment] {
    var assignments: [PropertyAssignment] = []
    for member in object.members {
      assignments.append(PropertyAssignment(name: member.name, value: try text(member)))
    }
    return assignments
  }

  /// Returns the type of each property, by its name and by its aliases.
  private static func typeNames(of type: any TypedOptions.Type) -> [String: String] {
    var typeNames: [String: String] = [:]
    for property in type.propertyDescriptions {
      for name in [property.name] + property.aliases { typeNames[name] = property.typeName }
    }
    return typeNames
  }

  /// - Returns: Nil for null, an array or an object.
  private static func text(of value: JSONValue) -> String? {
    switch value {
    case .string(let text): text
    case .bool(let flag): flag.text
    case .integer(let number): String(number)
    case .unsigned(let number): String(number)
    case .real(let number): String(number)
    case .null, .array, .object: nil
    }
  }

  /// The JSON type of a property, as errors name it.
  private static func kind(_ typeName: String) -> String {
    switch typeName {
    case "bool": "boolean"
    case PropertyDescription.listType: "array"
    default: isNumber(typeName) ? "integer" : "string"
    }
  }

  private static func isNumber(_ typeName: String) -> Bool { typeName.hasPrefix("uint") || typeName == "size" }

  /// Converts an address. A number has the device in bits 7:3 and the function in bits 2:0.
  private static func addressText(_ member: JSONObject.Member) throws(MonitorError) -> String {
    switch member.value {
    case .string(let text): return text
    case .integer(let number) where (0...255).contains(number):
      return String(number >> 3, radix: 16) + "." + String(number & 7)
    case .integer(let number): return String(number)
    default: throw .generic("Invalid parameter type for '\(member.name)', expected int or str")
    }
  }
}
