import Machine
import PCI

/// What `-global` says: QEMU sets a property of every device of a kind by it. Here it is known for the one property that
/// people have in their scripts for hot plug.
struct GlobalArguments: TypedOptions {
  var driver: String?
  var property: String?
  var value: String?

  static let properties: [Property<Self>] = [
    Property("driver", \.driver, .notEmpty, help: "Kind of device"),
    Property("property", \.property, .notEmpty, help: "Its property"),
    Property("value", \.value, help: "The property's value"),
  ]

  static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "driver, property and value are needed, as in DRIVER.PROPERTY=VALUE") {
      $0.driver != nil && $0.property != nil && $0.value != nil
    }
  ]

  /// Whether firmware's methods plug below bridges, of which a root port is one.
  static let acpiHotplug = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support"

  /// `DRIVER.PROPERTY=VALUE`, in which the value may have commas, or `driver=…,property=…,value=…` (QEMU's
  /// qemu_global_option).
  static func reading(_ text: String) throws(OptionProblem) -> Self {
    let driver = text.prefix { $0 != "." && $0 != "=" }
    let rest = text.dropFirst(driver.count)
    guard rest.first == ".", let equals = rest.firstIndex(of: "="), !driver.isEmpty else { return try parsing(text) }
    var arguments = Self()
    arguments.driver = String(driver)
    arguments.property = String(rest[..<equals].dropFirst())
    arguments.value = String(rest[equals...].dropFirst())
    return arguments
  }

  func hotplugWay() throws(OptionProblem) -> HotplugWay {
    let name = "\(driver ?? "").\(property ?? "")"
    guard name == Self.acpiHotplug else { throw .unknown(.globalProperty, name: name, known: [Self.acpiHotplug]) }
    let text = value ?? ""
    do {
      return try Bool(text: text) ? .acpi : .native
    } catch {
      throw .property(.value(name: name, text: text, error), owner: nil)
    }
  }
}
