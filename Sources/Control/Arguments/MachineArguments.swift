import Machine
import PCI

/// The properties of `-machine`.
struct MachineArguments: TypedOptions {
  var type = MachineConfiguration.MachineType.q35
  var accelerator: AcceleratorName?
  var memoryBackend: Identifier?
  var hotplugWay: HotplugWay?

  static let splitOnly =
    "Nestling emulates the IOAPIC so that its interrupts go through the remapping unit: only kernel-irqchip=split is possible"

  static let properties: [Property<Self>] = [
    Property("type", \.type, help: "Machine type"),
    Property("accel", \.accelerator, help: "Accelerator"),
    Property(
      "kernel-irqchip", aliases: ["kernel_irqchip"], settled: InterruptChip.split, because: splitOnly,
      help: "Local APICs in the kernel, IOAPIC in Nestling"),
    Property("memory-backend", \.memoryBackend, help: "ID of the memory-backend-memfd object to use as RAM"),
    Property(
      "x-pci-hotplug", \.hotplugWay, help: "How devices below root ports are hot-plugged: acpi (the default) or native"),
  ]
}

/// The properties of `-accel`.
struct AcceleratorArguments: TypedOptions {
  var accelerator: AcceleratorName?
  var device: String?

  static let properties: [Property<Self>] = [
    Property("accel", \.accelerator, help: "Accelerator"),
    Property("device", \.device, .notEmpty, help: "Path of the KVM device"),
    Property(
      "kernel-irqchip", aliases: ["kernel_irqchip"], settled: InterruptChip.split,
      because: MachineArguments.splitOnly,
      help: "Local APICs in the kernel, IOAPIC in Nestling"),
  ]
}

/// An accelerator. As in QEMU, the text may be a list (`kvm:tcg`), of which the first known accelerator counts.
enum AcceleratorName: String, CaseIterable, PropertyValue {
  case kvm, qtest

  static var typeName: String { "str" }
  var text: String { rawValue }

  init(text: String) throws(ValueError) {
    let known = text.split(separator: ":").lazy.compactMap { Self(rawValue: String($0)) }
    guard let first = known.first else { throw .notOneOf(Self.allCases.map(\.rawValue)) }
    self = first
  }
}

enum InterruptChip: String, ChoiceValue {
  case on, off, split
}

/// The properties of `-m`.
struct MemoryArguments: TypedOptions {
  var size: MebibyteSize?

  static let properties: [Property<Self>] = [
    Property("size", \.size, help: "Size of RAM, in MiB if it has no suffix")
  ]
}

/// A size. A number without a suffix counts MiB.
struct MebibyteSize: PropertyValue {
  var bytes: UInt64

  static var typeName: String { ByteCount.typeName }

  init(text: String) throws(ValueError) {
    guard let bytes = NumberText.size(text.utf8, unit: 1 << 20) else { throw .notSize }
    self.bytes = bytes
  }

  var text: String { ByteCount(bytes).text }
}

/// The properties of `-global`, with which QEMU sets a property of all devices of a type. Nestling knows one such
/// property, because scripts use it to select ACPI or native hotplug.
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
    return try mapError(try Bool(text: text) ? .acpi : .native) {
      OptionProblem.property(.value(name: name, text: text, $0), owner: nil)
    }
  }
}
