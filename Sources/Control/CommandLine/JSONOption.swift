import JSON
import Machine

/// Arguments of `-device` and `-object` in JSON: an object with a typed value for each property. The texts of errors are
/// QEMU's, as in QMP (system/vl.c, qapi/qobject-input-visitor.c).
enum JSONOption {
  /// Parses an argument in JSON.
  /// - Returns: Nil if the argument is an option string.
  static func object(_ text: String) throws(OptionProblem) -> JSONObject? {
    guard text.hasPrefix("{") else { return nil }
    var stream = JSONStream()
    var items: [JSONStream.Item] = []
    stream.receive(text.utf8) {
      items.append($0)
      return true
    }
    if let last = stream.finish() {
      if case .error = last, items.isEmpty { throw .json("JSON parse error, premature EOI") }
      items.append(last)
    }
    switch items.first {
    case .value(.object(let object)) where items.count == 1: return object
    case .error(let reason): throw .json(reason)
    default: throw .json("Expecting at most one JSON value")
    }
  }

  static func device(_ object: JSONObject) throws(OptionProblem) -> any DeviceOptions {
    do throws(MonitorError) {
      guard case .string(let driver)? = object["driver"] else { throw .generic("Parameter 'driver' is missing") }
      let kind = try DeviceArguments.read([PropertyAssignment(name: "driver", value: driver)]).kind
      var rest = object
      rest["driver"] = nil
      let assignments = try JSONProperties.typed(rest, of: kind)
      do throws(PropertyError) {
        let options = try kind.init(assignments)
        try QOMArguments.checkDescriptor(of: options)
        return options
      } catch {
        throw .generic(MonitorError.text(error, kind.typeName))
      }
    } catch {
      throw .json(error.text)
    }
  }

  static func object(_ object: JSONObject) throws(OptionProblem) -> any ObjectOptions {
    do throws(MonitorError) {
      let name = try JSONProperties.lenient(object["qom-type"], "qom-type")
      let (kind, _) = try ObjectArguments.kind(name, atStart: true)
      var rest = object
      rest["qom-type"] = nil
      let options = try ObjectArguments.read(kind, name ?? "", try JSONProperties.strict(rest, of: kind))
      do throws(PropertyError) {
        try QOMArguments.checkDescriptor(of: options)
      } catch {
        throw .unexpected(error, kind.typeName)
      }
      return options
    } catch {
      throw .json(error.text)
    }
  }
}

extension JSONProperties {
  /// Converts the members of a device. Each value must have its property's type. A member that names no property passes
  /// here and fails when the device type sets it.
  fileprivate static func typed(
    _ object: JSONObject, of kind: any TypedOptions.Type
  ) throws(MonitorError) -> [PropertyAssignment] {
    let properties = kind.propertyDescriptions
    var assignments: [PropertyAssignment] = []
    for member in object.members {
      let property = properties.first { $0.name == member.name || $0.aliases.contains(member.name) }
      assignments.append(
        PropertyAssignment(name: member.name, value: try text(of: member, typeName: property?.typeName)))
    }
    return assignments
  }

  private static func text(of member: JSONObject.Member, typeName: String?) throws(MonitorError) -> String {
    guard let typeName else { return "" }
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
