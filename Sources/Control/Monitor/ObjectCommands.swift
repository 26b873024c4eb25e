import JSON
import Machine

/// Commands that add and remove objects while the machine runs (qapi/qom.json).
extension MonitorCommands {
  static let objectCommands: [MonitorCommand] = [
    MonitorCommand(
      "object-add",
      open: [
        "qom-type": .enumeration("ObjectType", ObjectTypes.all.filter { $0.comesAndGoes }.map { $0.typeName }),
        "id": .string,
      ]
    ) { (object, target) throws(MonitorError) in
      let typeName = try JSONProperties.lenient(object["qom-type"], "qom-type")
      let (objectType, name) = try ObjectArguments.type(named: typeName)
      var rest = object
      rest["qom-type"] = nil
      try ObjectArguments.add(
        try ObjectArguments.read(objectType, name, try JSONProperties.strict(rest, of: objectType)), to: target)
    },
    MonitorCommand("object-del", argument: "id", ObjectArguments.remove),
  ]
}

/// The arguments of `object-add` and `object-del`, in QMP and HMP.
enum ObjectArguments {
  static func add(_ object: any ObjectOptions, to target: any MonitorTarget) throws(MonitorError) {
    guard var taking = object as? any ObjectOptions & DescriptorTaking else {
      return try target.perform(.addObject(object))
    }
    try DescriptorArguments.perform(taking.file?.text, on: target) { (file) throws(MonitorError) in
      taking.file?.file = file
      try target.perform(.addObject(taking))
    }
  }

  static func read(option text: String) throws(MonitorError) -> any ObjectOptions {
    let assignments = try MonitorError.assignments(text, impliedName: "qom-type")
    let (objectType, name) = try type(named: assignments.last { $0.name == "qom-type" }?.value)
    return try read(objectType, name, assignments.filter { $0.name != "qom-type" })
  }

  /// Looks up an object type by name.
  /// - Parameter atStart: Whether the machine has not started, so that all types are valid.
  static func type(
    named name: String?, atStart: Bool = false
  ) throws(MonitorError) -> (type: any ObjectOptions.Type, name: String) {
    guard let name, !name.isEmpty else { throw .generic("Parameter 'qom-type' is missing") }
    guard let objectType = ObjectTypes.named(name), atStart || objectType.comesAndGoes else {
      throw .generic("Parameter 'qom-type' does not accept value \(ErrorText.quoted(name))")
    }
    return (objectType, name)
  }

  static func read(
    _ objectType: any ObjectOptions.Type, _ name: String, _ assignments: [PropertyAssignment]
  ) throws(MonitorError) -> any ObjectOptions {
    let options = try mapError(try objectType.init(assignments)) { MonitorError.unexpected($0, name) }
    guard options.id != nil else { throw .generic("Parameter 'id' is missing") }
    return options
  }

  @Sendable
  static func remove(_ name: String, from target: any MonitorTarget) throws(MonitorError) {
    guard let id = try? Identifier(text: name) else { throw .generic("object \(ErrorText.quoted(name)) not found") }
    try target.perform(.removeObject(id))
  }
}

extension MonitorError {
  /// Returns QEMU's text for an error where the schema knows every property.
  static func unexpected(_ error: PropertyError, _ typeName: String) -> Self {
    if case .unknown(let name, _) = error { return .generic("Parameter \(ErrorText.quoted(name)) is unexpected") }
    return .generic(text(error, typeName))
  }
}
