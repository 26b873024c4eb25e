import VTd

/// `intel-iommu`: the options of a VT-d unit. Names and defaults are QEMU's (hw/i386/intel_iommu.c,
/// hw/i386/x86-iommu.c); only `x-nested` and `devices` are Nestling's.
public struct IntelIOMMUOptions: DeviceOptions, Hashable {
  public var id: Identifier?
  /// The devices that the unit translates for; nil for every device that no other unit names.
  public var devices: DeviceNames?
  /// The options of the remapping unit. `firstStage` is the value of `x-flts` alone.
  public var unit = UnitOptions()

  public init() {}

  /// The options with which the unit is created: `x-nested` includes `x-flts`.
  var unitOptions: UnitOptions {
    var options = unit
    options.firstStage = unit.firstStage || unit.nested
    return options
  }

  public static let typeName = "intel-iommu"
  public static let summary = "Intel IOMMU (VT-d) DMA Remapping device"
  public static let bus = DeviceBus.system
  public static let category = DeviceCategory.misc

  public static let properties: [Property<Self>] = [
    Property(
      "devices", \.devices,
      help: "Translate only for these: IDs or addresses of PCI devices, or ioapic, joined by +, example: disk0+05.0 (a "
        + "root port includes all functions below it); one intel-iommu without this property serves all others"),
    Property(
      "x-scalable-mode", aliases: ["scalable-mode"], \.unit.scalableMode,
      help: "Scalable mode: PASID tables (also scalable-mode)"),
    Property(
      "x-flts", aliases: ["fsts"], \.unit.firstStage,
      help: "First-stage translation instead of second stage, in scalable mode (also fsts)"),
    Property(
      "x-nested", \.unit.nested, help: "First stage, second stage and nested translation together, in scalable mode"),
    Property("aw-bits", \.unit.addressWidth.uint8, .oneOf([39, 48, 57]), help: "Bits of a DMA address: 39, 48 or 57"),
    Property("intremap", \.unit.interruptRemapping.onOffAuto, help: "Interrupt remapping, on/off/auto (auto is on)"),
    Property(
      "eim", \.unit.extendedInterruptMode.onOffAuto,
      help: "Extended interrupt mode (x2APIC), on/off/auto (auto follows intremap)"),
    Property(
      "caching-mode", \.unit.cachingMode,
      help: "The guest also invalidates entries that become present; on with a vfio-pci behind the unit, else off"),
    Property("device-iotlb", \.unit.deviceIOTLB, help: "Device IOTLBs: address translation services (ATS)"),
    Property("snoop-control", \.unit.snoopControl, help: "Second-stage entries may force snooping"),
    Property("pasid-bits", \.unit.pasidBits.uint8, .within(0...20), help: "Width of a PASID on requests, 0 for none"),
    Property("svm", \.unit.svm, help: "Shared virtual memory: page requests of devices (PRI)"),
    Property("fs1gp", \.unit.fs1gp, help: "1 GiB pages in first stage"),
    Property("dma-translation", \.unit.dmaTranslation, help: "DMA remapping; off leaves interrupt remapping only"),
    Property(
      "stale-tm", \.unit.ignoresTransientMapping, help: "Accept the stale TM bit in second-stage entries of old guests"),
  ]

  public static let rules: [PropertyRule<Self>] = [
    // The unit checks its own options.
    PropertyRule { (options) throws(PropertyError) in
      try mapError(try options.unitOptions.validate(), PropertyError.unit)
    }
  ]
}
