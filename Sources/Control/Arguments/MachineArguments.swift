import Machine
import PCI

/// The properties of `-machine`.
struct MachineArguments: TypedOptions {
  var type = MachineConfiguration.MachineType.q35
  var accelerator: AcceleratorName?
  var memoryBackend: Identifier?
  var hotplugWay: HotplugWay?

  static let splitOnly =
    "Nestling emulates the IOAPIC so that its interrupts pass the remapping unit: only kernel-irqchip=split is possible"

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
