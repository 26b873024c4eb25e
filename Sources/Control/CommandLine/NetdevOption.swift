import JSON
import Machine

/// `-netdev TYPE,id=ID[,PROP=VALUE...]`, or the same in JSON.
enum NetdevOption {
  @Sendable
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    if CommandOptions.asksHelp(text) { return draft.print(HelpText.netdevTypes) }
    let options: any NetdevOptions
    if let object = try JSONOption.object(text) {
      options = try mapError(try NetdevArguments.read(object)) { (error: MonitorError) in
        OptionProblem.json(error.text)
      }
    } else {
      let (name, assignments) = try QOMArguments.split(text, impliedName: "type", of: .netdev)
      let netdevType = try type(named: name)
      if CommandOptions.asksForProperties(text) { return draft.printProperties(of: netdevType) }
      options = try netdevType.checked(assignments)
    }
    try add(options, to: &draft)
  }

  static func type(named name: String) throws(OptionProblem) -> any NetdevOptions.Type {
    guard let netdevType = NetdevTypes.named(name) else {
      throw .unknown(.netdev, name: name, known: NetdevTypes.all.map { $0.typeName })
    }
    return netdevType
  }

  static func add(_ options: any NetdevOptions, to draft: inout CommandLineDraft) throws(OptionProblem) {
    // Only a monitor's client can name an open file. The command line takes numbers of inherited descriptors.
    if let named = options.descriptors.first(where: { $0.number == nil }) {
      throw .property(.value(name: "fd", text: named.text, .notNumber), owner: nil)
    }
    draft.configuration.netdevs.append(options)
    draft.netdevSources.append(draft.source)
  }
}
