import Machine

/// `-device TYPE[,PROP=VALUE...]`.
enum DeviceOption {
  @Sendable
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) -> String? {
    if CommandOptions.asksHelp(text) { return HelpText.deviceTypes }
    if let object = try JSONOption.object(text) {
      let options = try JSONOption.device(object)
      draft.configuration.devices.append(options)
      draft.deviceSources.append(draft.source)
      return nil
    }
    let (name, assignments) = try QOMArguments.split(text, impliedName: "driver", of: .device)
    guard let deviceType = DeviceTypes.named(name) else {
      throw .unknown(.device, name: name, known: DeviceTypes.all.flatMap { [$0.typeName] + $0.typeAliases })
    }
    if CommandOptions.asksForProperties(text) { return HelpText.properties(of: deviceType, title: deviceType.typeName) }
    do {
      let options = try deviceType.init(assignments)
      try QOMArguments.checkDescriptor(of: options)
      draft.configuration.devices.append(options)
    } catch {
      throw .property(error, owner: deviceType.typeName)
    }
    draft.deviceSources.append(draft.source)
    return nil
  }
}

/// `-object TYPE,id=ID[,PROP=VALUE...]`.
enum ObjectOption {
  @Sendable
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) -> String? {
    if CommandOptions.asksHelp(text) { return HelpText.objectTypes }
    if let object = try JSONOption.object(text) {
      let options = try JSONOption.object(object)
      draft.configuration.objects.append(options)
      draft.objectSources.append(draft.source)
      return nil
    }
    let (name, assignments) = try QOMArguments.split(text, impliedName: "qom-type", of: .object)
    guard let objectType = ObjectTypes.named(name) else {
      throw .unknown(.object, name: name, known: ObjectTypes.all.map { $0.typeName })
    }
    if CommandOptions.asksForProperties(text) {
      return HelpText.properties(of: objectType, title: objectType.typeName)
    }
    do {
      let options = try objectType.init(assignments)
      try QOMArguments.checkDescriptor(of: options)
      draft.configuration.objects.append(options)
    } catch {
      throw .property(error, owner: objectType.typeName)
    }
    draft.objectSources.append(draft.source)
    return nil
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
