import VTd

/// `intel-iommu`: the options of a VT-d unit. Names and defaults are QEMU's (hw/i386/intel_iommu.c,
/// hw/i386/x86-iommu.c); only `x-nested` is Nestling's. CAP and ECAP below are the registers CAP_REG and ECAP_REG (VT-d
/// 11.4.2 and 11.4.3).
public struct IntelIOMMUOptions: DeviceOptions, Hashable {
  public var id: Identifier?
  /// The devices that the unit translates for; nil for every device that no other unit names.
  public var devices: DeviceNames?
  /// Scalable mode (ECAP.SMTS).
  public var scalableMode = false
  /// First-stage translation (ECAP.FSTS). Without `nested` it replaces the second stage in scalable mode.
  public var firstStage = false
  /// First stage, second stage and nested translation (ECAP.FSTS, SSTS, NEST), whether or not `firstStage` is on.
  public var nested = false
  /// Bits of a DMA address (CAP.MGAW, CAP.SAGAW): 39, 48 or 57.
  public var addressWidth: UInt8 = 48
  public var interruptRemapping = OnOffAuto.auto
  public var extendedInterrupts = OnOffAuto.auto
  /// Caching mode (CAP.CM): the guest also invalidates an entry that becomes present. Nil: on if a passed-through
  /// device is behind the unit, because the host must follow each such entry; otherwise off.
  public var cachingMode: Bool?
  /// Devices may cache translations (ECAP.DT).
  public var deviceIOTLB = false
  /// Second-stage entries may force snooping (ECAP.SC).
  public var snoopControl = false
  /// Width of a PASID (ECAP.PASID, ECAP.PSS); 0 for no PASIDs on requests.
  public var pasidBits: UInt8 = 0
  /// Page requests (ECAP.PRS).
  public var svm = false
  /// 1 GiB pages in first stage (CAP.FS1GP).
  public var firstStage1GPages = true
  /// DMA remapping; off leaves only interrupt remapping (CAP.SAGAW = 0).
  public var dmaTranslation = true
  /// Whether the unit accepts the transient-mapping bit that old guests set in second-stage entries.
  public var staleTransientMapping = false

  public init() {}

  /// The value of `intremap`. `auto` is on, because the kernel has only the local APICs, and Nestling has the IOAPIC.
  public var offersInterruptRemapping: Bool { interruptRemapping.resolved(auto: true) }
  /// The value of `eim` (ECAP.EIM), 32-bit x2APIC destinations. `auto` follows `intremap`.
  public var offersExtendedInterrupts: Bool { extendedInterrupts.resolved(auto: offersInterruptRemapping) }

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
      "x-scalable-mode", aliases: ["scalable-mode"], \.scalableMode,
      help: "Scalable mode: PASID tables (also scalable-mode)"),
    Property(
      "x-flts", aliases: ["fsts"], \.firstStage,
      help: "First-stage translation instead of second stage, in scalable mode (also fsts)"),
    Property(
      "x-nested", \.nested, help: "First stage, second stage and nested translation together, in scalable mode"),
    Property("aw-bits", \.addressWidth, .oneOf([39, 48, 57]), help: "Bits of a DMA address: 39, 48 or 57"),
    Property("intremap", \.interruptRemapping, help: "Interrupt remapping, on/off/auto (auto is on)"),
    Property(
      "eim", \.extendedInterrupts, help: "Extended interrupt mode (x2APIC), on/off/auto (auto follows intremap)"),
    Property(
      "caching-mode", \.cachingMode,
      help: "The guest also invalidates entries that become present; on with a vfio-pci behind the unit, else off"),
    Property("device-iotlb", \.deviceIOTLB, help: "Device IOTLBs: address translation services (ATS)"),
    Property("snoop-control", \.snoopControl, help: "Second-stage entries may force snooping"),
    Property("pasid-bits", \.pasidBits, .within(0...20), help: "Width of a PASID on requests, 0 for none"),
    Property("svm", \.svm, help: "Shared virtual memory: page requests of devices (PRI)"),
    Property("fs1gp", \.firstStage1GPages, help: "1 GiB pages in first stage"),
    Property("dma-translation", \.dmaTranslation, help: "DMA remapping; off leaves interrupt remapping only"),
    Property(
      "stale-tm", \.staleTransientMapping, help: "Accept the stale TM bit in second-stage entries of old guests"),
  ]

  public static let rules: [PropertyRule<Self>] = [
    // The unit checks its own options.
    PropertyRule { (options) throws(PropertyError) in
      do throws(UnitOptionError) {
        try options.unitOptions.validate()
      } catch {
        throw .unit(error)
      }
    }
  ]
}

extension IntelIOMMUOptions {
  /// The unit's options, made from those of the command line.
  var unitOptions: UnitOptions {
    var options = UnitOptions()
    options.scalableMode = scalableMode
    options.firstStage = firstStage || nested
    options.nested = nested
    options.addressWidth = Int(addressWidth)
    options.interruptRemapping = offersInterruptRemapping
    options.extendedInterruptMode = offersExtendedInterrupts
    options.cachingMode = cachingMode ?? false
    options.snoopControl = snoopControl
    options.deviceIOTLB = deviceIOTLB
    options.pasidBits = Int(pasidBits)
    options.svm = svm
    options.fs1gp = firstStage1GPages
    options.dmaTranslation = dmaTranslation
    options.staleTranslationMethod = staleTransientMapping
    return options
  }
}
