import JSON
import Machine

/// Commands that add and remove devices while the machine runs (qapi/qdev.json).
extension MonitorCommands {
  static let deviceCommands: [MonitorCommand] = [
    MonitorCommand(
      "device_add",
      open: ["driver": .string, "*bus": .string, "*id": .string]
    ) { (object, target) throws(MonitorError) in
      try DeviceArguments.add(try DeviceArguments.read(try JSONProperties.lenient(object)), to: target)
    },
    MonitorCommand("device_del", RemovalArguments.self) { (arguments, target) throws(MonitorError) in
      try target.perform(.removeDevice(arguments.id, isSurprise: arguments.isSurprise ?? false))
    },
  ]
}

struct RemovalArguments: CommandArguments {
  var id = ""
  /// Whether to remove the device without asking the guest (surprise removal). This is Nestling's extension.
  var isSurprise: Bool?

  static let fields: [ArgumentField<Self>] = [ArgumentField("id", \.id), ArgumentField("x-surprise", \.isSurprise)]
}

/// The arguments of `device_add`, in QMP and HMP.
enum DeviceArguments {
  static func add(_ description: DeviceDescription, to target: any MonitorTarget) throws(MonitorError) {
    let names = description.assignments.last { $0.name == "fd" && description.type is any DescriptorTaking.Type }
    try DescriptorArguments.perform(names?.value, on: target) { (file) throws(MonitorError) in
      var description = description
      description.file = file
      try target.perform(.addDevice(description))
    }
  }

  static func read(option text: String) throws(MonitorError) -> DeviceDescription {
    try read(try MonitorError.assignments(text, impliedName: "driver"))
  }

  static func read(_ assignments: [PropertyAssignment]) throws(MonitorError) -> DeviceDescription {
    func value(_ name: String) -> String? { assignments.last { $0.name == name }?.value }
    if let id = value("id"), (try? Identifier(text: id)) == nil {
      throw .generic("Parameter 'id' expects an identifier")
    }
    guard let driver = value("driver"), !driver.isEmpty else { throw .generic("Parameter 'driver' is missing") }
    guard let deviceType = DeviceTypes.named(driver) else {
      if QOMType.named(driver)?.isAbstract == true {
        throw .generic("Parameter 'driver' expects a non-abstract device type")
      }
      throw .generic("\(ErrorText.quoted(driver)) is not a valid device model name")
    }
    return DeviceDescription(
      deviceType, bus: value("bus"), assignments.filter { $0.name != "driver" && $0.name != "bus" })
  }
}
