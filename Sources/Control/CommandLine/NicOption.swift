import Machine

/// `-nic [TYPE][,PROP=VALUE...]`: a netdev and the network card that uses it, in one option (net/net.c, net_param_nic).
///
/// The result is that of `-netdev TYPE,id=ID,PROP=VALUE...` and `-device virtio-net-pci,netdev=ID,...`.
enum NicOption {
  /// The values of `model`. The first one is the name of the device type.
  static let models = [VirtioNetOptions.typeName, "virtio"]

  /// The properties of the card. QEMU has only `mac`.
  static let cardProperties = ["mac", "addr", "iommu_platform"]

  @Sendable
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    var netdev = try OptionString.assignments(text, impliedName: "type")
    let type = take("type", from: &netdev) ?? UserNetdevOptions.typeName
    if CommandOptions.asksHelp(type) { return draft.print(HelpText.netdevTypes + "\n" + HelpText.cardModels) }
    if type == "none" {
      guard let property = netdev.first else { return }
      throw .property(.unknown(name: property.name, known: []), owner: type)
    }
    let model = take("model", from: &netdev)
    if let model, CommandOptions.asksHelp(model) { return draft.print(HelpText.cardModels) }
    let netdevType = try NetdevOption.type(named: type)
    if CommandOptions.asksForProperties(text) { return draft.printProperties(of: netdevType) }
    if let model, !models.contains(model) {
      throw .property(.value(name: "model", text: model, .notOneOf(models)), owner: nil)
    }

    var card = try VirtioNetOptions.checked(netdev.filter { cardProperties.contains($0.name) })
    netdev.removeAll { cardProperties.contains($0.name) }
    var options = try checked(netdev, of: netdevType)
    let id = options.id ?? .generatedForNetdev(draft.configuration.netdevs.count)
    options.id = id
    card.backend = id
    try NetdevOption.add(options, to: &draft)
    draft.configuration.devices.append(card)
    draft.deviceSources.append(draft.source)
  }

  /// Removes the assignments to a name, and returns the last value.
  private static func take(_ name: String, from assignments: inout [PropertyAssignment]) -> String? {
    let last = assignments.last { $0.name == name }
    assignments.removeAll { $0.name == name }
    return last.map { $0.value ?? "on" }
  }

  private static func checked(
    _ assignments: [PropertyAssignment], of netdevType: any NetdevOptions.Type
  ) throws(OptionProblem) -> any NetdevOptions {
    do throws(OptionProblem) {
      return try netdevType.checked(assignments)
    } catch {
      guard case .property(.unknown(let name, let known), let owner) = error else { throw error }
      if name != "netdev",
        VirtioNetOptions.propertyDescriptions.contains(where: { $0.name == name || $0.aliases.contains(name) })
      {
        throw .cardProperty(name)
      }
      throw .property(.unknown(name: name, known: known + cardProperties + ["model"]), owner: owner)
    }
  }
}
