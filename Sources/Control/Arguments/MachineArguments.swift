import Machine
import PCI

/// What `-machine` says.
struct MachineArguments: TypedOptions {
  var type = MachineConfiguration.MachineType.q35
  var accelerator: AcceleratorName?
  var memoryBackend: Identifier?
  var hotplugWay: HotplugWay?

  static let splitOnly =
    "every interrupt passes the remapper, so the IOAPIC is Nestling's own: kernel-irqchip=split is what there is"

  static let properties: [Property<Self>] = [
    Property("type", \.type, help: "Machine type"),
    Property("accel", \.accelerator, help: "Accelerator"),
    Property(
      "kernel-irqchip", aliases: ["kernel_irqchip"], settled: InterruptChip.split, because: splitOnly,
      help: "Local APICs in the kernel, IOAPIC in Nestling"),
    Property("memory-backend", \.memoryBackend, help: "ID of a memory-backend-memfd object that is the RAM"),
    Property(
      "x-pci-hotplug", \.hotplugWay, help: "How devices are plugged below root ports: acpi (the default) or native"),
  ]
}

/// What `-accel` says.
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

/// QEMU takes a list, `kvm:tcg`, of which the first that is there is used.
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
