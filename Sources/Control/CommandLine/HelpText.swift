import Machine

/// The texts that the help options print, made from the tables.
enum HelpText {
  static let versionNumber = "0.1.0"
  static let version = "Nestling emulator version \(versionNumber)\n"

  static var options: String {
    var text = version + "usage: nestling [options]\n"
    text += "       nestling check-host [BDF...]: check whether this host can pass devices through\n"
    for group in CommandOptions.groups {
      text += "\n\(group.title):\n"
      for option in group.options {
        let names = option.names.map { "-" + $0 }.joined(separator: " or ")
        let heading = option.argument.map { names + " " + $0 } ?? names
        text += lines(heading, option.help, indent: 20)
      }
    }
    return text + "\nDuring a run, with the serial port on stdio:\n" + TerminalMultiplexer.help
  }

  /// Lays out a heading with its lines of help to its right, or below it if it is too long.
  private static func lines(_ heading: String, _ help: [String], indent: Int) -> String {
    let margin = String(repeating: " ", count: indent)
    var text = heading
    for (index, line) in help.enumerated() {
      if index == 0, heading.count < indent {
        text += String(repeating: " ", count: indent - heading.count)
      } else {
        text += "\n" + margin
      }
      text += line
    }
    return text + "\n"
  }

  /// The answer to `-device help`, in QEMU's layout.
  static var deviceTypes: String {
    var text = ""
    for category in DeviceCategory.allCases {
      let types = DeviceTypes.all.filter { $0.category == category }.sorted { $0.typeName < $1.typeName }
      if types.isEmpty { continue }
      text += (text.isEmpty ? "" : "\n") + "\(category.rawValue) devices:\n"
      for deviceType in types {
        text += "name \"\(deviceType.typeName)\", bus \(deviceType.bus.rawValue)"
        for alias in deviceType.typeAliases { text += ", alias \"\(alias)\"" }
        text += ", desc \"\(deviceType.summary)\"\n"
      }
    }
    return text
  }

  static var objectTypes: String {
    let types = ObjectTypes.all.sorted { $0.typeName < $1.typeName }
    let width = (types.map { $0.typeName.count }.max() ?? 0) + 2
    return "List of user creatable objects:\n"
      + types.map { lines("  " + $0.typeName, [$0.summary], indent: width + 2) }.joined()
  }

  static var chardevTypes: String {
    "Available chardev backend types:\n" + ChardevTypes.all.map { "  \($0.typeName)\n" }.sorted().joined()
  }

  static var netdevTypes: String {
    "Available netdev backend types:\n" + NetdevTypes.all.map { "\($0.typeName)\n" }.joined()
  }

  /// The answer to `-nic model=help`, in QEMU's layout.
  static var cardModels: String {
    let names = NicOption.models
    let aliases = names.dropFirst().joined(separator: ", ")
    return "Available NIC models for this configuration:\n\(names[0]) (aka \(aliases))\n"
  }

  /// Returns the answer to `-device TYPE,help`, in QEMU's layout.
  static func properties(of type: any TypedOptions.Type, title: String) -> String {
    var text = "\(title) options:\n"
    for property in type.propertyDescriptions {
      var line = "  \(property.name)=<\(property.typeName)>"
      line += String(repeating: " ", count: max(0, 24 - line.count))
      line += " - \(property.help)"
      if let value = property.defaultText, !value.isEmpty { line += " (default: \(value))" }
      text += line + "\n"
    }
    return text
  }

  static let machineTypes =
    "Supported machines are:\nq35                  PCI Express machine modelled on QEMU's q35 (default)\n"
  static let accelerators = "Accelerators supported in this binary:\nqtest\nkvm\n"
  static let processorModels = "Available CPUs:\n  host                  the host's CPU, as KVM offers it\n"

  static var logItems: String {
    "Log items (comma separated):\n"
      + MachineConfiguration.LogItem.allCases.map { lines($0.rawValue, [$0.help], indent: 16) }.joined()
  }
}

extension MachineConfiguration.LogItem {
  fileprivate var help: String {
    switch self {
    case .iommu: "the IOMMU's counters, when Nestling ends"
    }
  }
}
