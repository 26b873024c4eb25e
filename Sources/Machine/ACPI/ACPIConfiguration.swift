import Hardware
import PCI

/// The parts of the ACPI tables that depend on the machine. `ACPIPlatform` has those that are the same on all machines.
struct ACPIConfiguration: Hashable, Sendable {
  /// Local APIC ids in the order of the CPUs.
  var localAPICs: [UInt32]
  var ioAPIC = IOAPIC()
  /// The memory window above 4 GiB for BARs; nil or empty if there is none.
  var highWindow: Range<UInt64>?
  /// The highest bus number.
  var lastBus: UInt8 = 0
  var hotplugWay = HotplugWay.acpi
  /// The hotplug slots, in the order in which the hotplug controller numbers them.
  var hotplugSlots: [HotplugSlot] = []
  /// The content of the DMAR table; nil for a machine without a remapping unit, which has no such table.
  var remapping: DMARemapping?

  struct IOAPIC: Hashable, Sendable {
    var id: UInt8 = 0
    var address: UInt32 = 0xfec0_0000
    /// The global system interrupt of the I/O APIC's first pin.
    var interruptBase: UInt32 = 0
  }
}

/// The content of the DMAR table (VT-d chapter 8).
struct DMARemapping: Hashable, Sendable {
  /// The host address width: bits of the widest address that a device may use, 1...256. The table contains the width
  /// minus one.
  var hostAddressWidth: Int
  /// INTR_REMAP: the machine supports interrupt remapping.
  var interruptRemapping: Bool
  /// X2APIC_OPT_OUT: system software should not enable x2APIC mode.
  var x2APICOptOut: Bool
  var units: [Unit]
  /// The root ports below which functions may use ATS (ATSR), one structure for each segment.
  var translationServices: [TranslationServices] = []

  /// A remapping unit (DRHD).
  struct Unit: Hashable, Sendable {
    var registerBase: UInt64 = 0xfed9_0000
    var segment: UInt16 = 0
    /// INCLUDE_PCI_ALL: the unit translates for all functions of the segment that no other unit's scope names.
    var includesAll = true
    var scopes: [DeviceScope]
  }

  /// Address translation services of root ports (ATSR).
  struct TranslationServices: Hashable, Sendable {
    var segment: UInt16 = 0
    /// ALL_PORTS: the structure applies to every root port of the segment. The table then contains no scopes.
    var allPorts = true
    var scopes: [DeviceScope] = []
  }

  /// A device to which a structure applies (8.3.1).
  struct DeviceScope: Hashable, Sendable {
    /// The structure's type field.
    enum ScopeType: UInt8, Sendable {
      case endpoint = 1
      /// A bridge and all functions below it.
      case subHierarchy = 2
      case ioAPIC = 3
    }

    /// One step of the path: a device on the bus to which the previous step leads.
    struct Step: Hashable, Sendable {
      var device: UInt8
      var function: UInt8
    }

    var type: ScopeType
    /// The I/O APIC's id in the MADT; zero for the other types.
    var enumerationID: UInt8 = 0
    var startBus: UInt8
    /// 1 to 124 steps.
    var path: [Step]

    /// Makes the scope of an I/O APIC that sends its interrupts with this source-id.
    static func ioAPIC(id: UInt8, sourceID: RequesterID) -> DeviceScope {
      DeviceScope(
        type: .ioAPIC, enumerationID: id, startBus: sourceID.bus,
        path: [Step(device: sourceID.device, function: sourceID.function)])
    }
  }
}
