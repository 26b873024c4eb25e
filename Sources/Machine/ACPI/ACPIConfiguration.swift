import Hardware
import PCI

/// The parts of the ACPI tables that depend on the machine. `ACPIPlatform` has those that are the same on all machines.
public struct ACPIConfiguration: Hashable, Sendable {
  /// Local APIC ids in the order of the CPUs.
  public var localAPICs: [UInt32]
  public var ioAPIC: IOAPIC
  /// The memory window above 4 GiB for BARs; nil or empty if there is none.
  public var highWindow: Range<UInt64>?
  /// The highest bus number.
  public var lastBus: UInt8
  public var hotplugWay: HotplugWay
  /// The hotplug slots, in the order in which the hotplug controller numbers them.
  public var hotplugSlots: [HotplugSlot]
  /// The content of the DMAR table; nil for a machine without a remapping unit, which has no such table.
  public var remapping: DMARemapping?

  public init(
    localAPICs: [UInt32], ioAPIC: IOAPIC = IOAPIC(), highWindow: Range<UInt64>? = nil, lastBus: UInt8 = 0,
    hotplugWay: HotplugWay = .acpi, hotplugSlots: [HotplugSlot] = [], remapping: DMARemapping? = nil
  ) {
    self.hotplugWay = hotplugWay
    self.hotplugSlots = hotplugSlots
    self.lastBus = lastBus
    self.localAPICs = localAPICs
    self.ioAPIC = ioAPIC
    self.highWindow = highWindow
    self.remapping = remapping
  }

  public struct IOAPIC: Hashable, Sendable {
    public var id: UInt8
    public var address: UInt32
    /// The global system interrupt of the I/O APIC's first pin.
    public var interruptBase: UInt32

    public init(id: UInt8 = 0, address: UInt32 = 0xfec0_0000, interruptBase: UInt32 = 0) {
      self.id = id
      self.address = address
      self.interruptBase = interruptBase
    }
  }
}

/// The content of the DMAR table (VT-d chapter 8).
public struct DMARemapping: Hashable, Sendable {
  /// The host address width: bits of the widest address that a device may use, 1...256. The table contains the width
  /// minus one.
  public var hostAddressWidth: Int
  /// INTR_REMAP: the machine supports interrupt remapping.
  public var interruptRemapping: Bool
  /// X2APIC_OPT_OUT: system software should not enable x2APIC mode.
  public var x2APICOptOut: Bool
  public var units: [Unit]
  /// The root ports below which functions may use ATS (ATSR), one structure for each segment.
  public var translationServices: [TranslationServices]

  public init(
    hostAddressWidth: Int, interruptRemapping: Bool, x2APICOptOut: Bool, units: [Unit],
    translationServices: [TranslationServices] = []
  ) {
    self.hostAddressWidth = hostAddressWidth
    self.interruptRemapping = interruptRemapping
    self.x2APICOptOut = x2APICOptOut
    self.units = units
    self.translationServices = translationServices
  }

  /// A remapping unit (DRHD).
  public struct Unit: Hashable, Sendable {
    public var registerBase: UInt64
    public var segment: UInt16
    /// INCLUDE_PCI_ALL: the unit translates for all functions of the segment that no other unit's scope names.
    public var includesAll: Bool
    public var scopes: [DeviceScope]

    public init(
      registerBase: UInt64 = 0xfed9_0000, segment: UInt16 = 0, includesAll: Bool = true, scopes: [DeviceScope]
    ) {
      self.registerBase = registerBase
      self.segment = segment
      self.includesAll = includesAll
      self.scopes = scopes
    }
  }

  /// Address translation services of root ports (ATSR).
  public struct TranslationServices: Hashable, Sendable {
    public var segment: UInt16
    /// ALL_PORTS: the structure applies to every root port of the segment. The table then contains no scopes.
    public var allPorts: Bool
    public var scopes: [DeviceScope]

    public init(segment: UInt16 = 0, allPorts: Bool = true, scopes: [DeviceScope] = []) {
      self.segment = segment
      self.allPorts = allPorts
      self.scopes = scopes
    }
  }

  /// A device to which a structure applies (8.3.1).
  public struct DeviceScope: Hashable, Sendable {
    /// The structure's type field.
    public enum ScopeType: UInt8, Sendable {
      case endpoint = 1
      /// A bridge and all functions below it.
      case subHierarchy = 2
      case ioAPIC = 3
    }

    /// One step of the path: a device on the bus to which the previous step leads.
    public struct Step: Hashable, Sendable {
      public var device: UInt8
      public var function: UInt8

      public init(device: UInt8, function: UInt8) {
        self.device = device
        self.function = function
      }
    }

    public var type: ScopeType
    /// The I/O APIC's id in the MADT; zero for the other types.
    public var enumerationID: UInt8
    public var startBus: UInt8
    /// 1 to 124 steps.
    public var path: [Step]

    public init(type: ScopeType, enumerationID: UInt8 = 0, startBus: UInt8, path: [Step]) {
      self.type = type
      self.enumerationID = enumerationID
      self.startBus = startBus
      self.path = path
    }

    /// Makes the scope of an I/O APIC that sends its interrupts with this source-id.
    public static func ioAPIC(id: UInt8, sourceID: RequesterID) -> DeviceScope {
      DeviceScope(
        type: .ioAPIC, enumerationID: id, startBus: sourceID.bus,
        path: [Step(device: sourceID.device, function: sourceID.function)])
    }
  }
}
