import Machine

/// `-device TYPE[,PROP=VALUE...]`.
enum DeviceOption {
  @Sendable
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    if CommandOptions.asksHelp(text) { return draft.print(HelpText.deviceTypes) }
    if let object = try JSONOption.object(text) {
      draft.configuration.devices.append(try JSONOption.device(object))
    } else {
      let (name, assignments) = try QOMArguments.split(text, impliedName: "driver", of: .device)
      guard let deviceType = DeviceTypes.named(name) else {
        throw .unknown(.device, name: name, known: DeviceTypes.all.flatMap { [$0.typeName] + $0.typeAliases })
      }
      if CommandOptions.asksForProperties(text) { return draft.printProperties(of: deviceType) }
      draft.configuration.devices.append(try deviceType.checked(assignments))
    }
    draft.deviceSources.append(draft.source)
  }
}

/// `-object TYPE,id=ID[,PROP=VALUE...]`.
enum ObjectOption {
  @Sendable
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    if CommandOptions.asksHelp(text) { return draft.print(HelpText.objectTypes) }
    if let object = try JSONOption.object(text) {
      draft.configuration.objects.append(try JSONOption.object(object))
    } else {
      let (name, assignments) = try QOMArguments.split(text, impliedName: "qom-type", of: .object)
      guard let objectType = ObjectTypes.named(name) else {
        throw .unknown(.object, name: name, known: ObjectTypes.all.map { $0.typeName })
      }
      if CommandOptions.asksForProperties(text) { return draft.printProperties(of: objectType) }
      draft.configuration.objects.append(try objectType.checked(assignments))
    }
    draft.objectSources.append(draft.source)
  }
}

extension CommandLineDraft {
  mutating func printProperties(of type: any QOMOptions.Type) {
    print(HelpText.properties(of: type, title: type.typeName))
  }
}

extension QOMOptions {
  /// Creates options from the properties of an option string.
  static func checked(_ assignments: [PropertyAssignment]) throws(OptionProblem) -> Self {
    do throws(PropertyError) {
      let options = try Self(assignments)
      try QOMArguments.checkDescriptor(of: options)
      return options
    } catch {
      throw .property(error, owner: typeName)
    }
  }
}

enum QOMArguments {
  /// Refuses a descriptor by name: only a monitor's client can name one. The command line takes numbers of inherited
  /// descriptors.
  static func checkDescriptor(of options: any QOMOptions) throws(PropertyError) {
    guard let file = (options as? any DescriptorTaking)?.file, file.number == nil else { return }
    throw .value(name: "fd", text: file.text, .notNumber)
  }

  /// Separates the type's name from the other assignments of an option string.
  static func split(
    _ text: String, impliedName: String, of wordKind: OptionProblem.WordKind
  ) throws(OptionProblem) -> (name: String, assignments: [PropertyAssignment]) {
    let assignments = try OptionString.assignments(text, impliedName: impliedName)
    guard let name = assignments.last(where: { $0.name == impliedName })?.value, !name.isEmpty else {
      throw .missing(wordKind)
    }
    return (name, assignments.filter { $0.name != impliedName })
  }
}
