import Machine
import PCI

/// The properties of `-global`, by which QEMU sets a property of all devices of a type. Nestling knows one such property,
/// because scripts use it to select the way of hotplug.
struct GlobalArguments: TypedOptions {
  var driver: String?
  var property: String?
  var value: String?

  static let properties: [Property<Self>] = [
    Property("driver", \.driver, .notEmpty, help: "Device type"),
    Property("property", \.property, .notEmpty, help: "Its property"),
    Property("value", \.value, help: "The property's value"),
  ]

  static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "driver, property and value are needed, as in DRIVER.PROPERTY=VALUE") {
      $0.driver != nil && $0.property != nil && $0.value != nil
    }
  ]

  /// Whether ACPI methods hot-plug devices below bridges, which include root ports.
  static let acpiHotplug = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support"

  /// Parses `DRIVER.PROPERTY=VALUE`, whose value may contain commas, or `driver=…,property=…,value=…` (QEMU's
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
