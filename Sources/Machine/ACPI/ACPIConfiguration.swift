import Hardware
import PCI

/// What the tables say of one machine, beyond what is the same on all of them (`ACPIPlatform`).
public struct ACPIConfiguration: Hashable, Sendable {
  /// Local APIC ids in the order of the CPUs.
  public var localAPICs: [UInt32]
  public var ioAPIC: IOAPIC
  /// The memory window above 4 GiB from which BARs are given out; nil or empty when there is none.
  public var highWindow: Range<UInt64>?
  /// The highest number that a bus has.
  public var lastBus: UInt8
  /// How devices come and go in `hotplugSlots`, which are numbered in this order for the controller.
  public var hotplugWay: HotplugWay
  public var hotplugSlots: [HotplugSlot]
  /// Nil without a remapping unit: then there is no DMAR table.
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
    /// The global system interrupt of its first pin.
    public var interruptBase: UInt32

    public init(id: UInt8 = 0, address: UInt32 = 0xfec0_0000, interruptBase: UInt32 = 0) {
      self.id = id
      self.address = address
      self.interruptBase = interruptBase
    }
  }
}

/// The content of the DMAR table (VT-d 4.1, chapter 8).
public struct DMARemapping: Hashable, Sendable {
  /// Bits of the widest address that a device may use: HAW, which the table has less one. 1...256.
  public var hostAddressWidth: Int
  /// INTR_REMAP: interrupt remapping is there.
  public var interruptRemapping: Bool
  /// X2APIC_OPT_OUT: system software is asked not to turn x2APIC mode on.
  public var x2APICOptOut: Bool
  public var units: [Unit]
  /// Root ports whose functions below may send translated requests (ATSR), one for each segment.
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
    /// INCLUDE_PCI_ALL: it has all of the segment that no other unit's scope names.
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
    /// ALL_PORTS: every root port of the segment; then no scope is given.
    public var allPorts: Bool
    public var scopes: [DeviceScope]

    public init(segment: UInt16 = 0, allPorts: Bool = true, scopes: [DeviceScope] = []) {
      self.segment = segment
      self.allPorts = allPorts
      self.scopes = scopes
    }
  }

  /// A device that a structure speaks of (8.3.1).
  public struct DeviceScope: Hashable, Sendable {
    /// The structure's type field.
    public enum Kind: UInt8, Sendable {
      case endpoint = 1
      /// A bridge and all below it.
      case subHierarchy = 2
      case ioAPIC = 3
    }

    /// A step on the way: a device on the bus that the step before leads to.
    public struct Step: Hashable, Sendable {
      public var device: UInt8
      public var function: UInt8

      public init(device: UInt8, function: UInt8) {
        self.device = device
        self.function = function
      }
    }

    public var kind: Kind
    /// The I/O APIC's id as the MADT has it; zero for the other kinds.
    public var enumerationID: UInt8
    public var startBus: UInt8
    /// Not empty; at most 124 steps.
    public var path: [Step]

    public init(kind: Kind, enumerationID: UInt8 = 0, startBus: UInt8, path: [Step]) {
      self.kind = kind
      self.enumerationID = enumerationID
      self.startBus = startBus
      self.path = path
    }

    /// An I/O APIC that sends its interrupts with this source-id.
    public static func ioAPIC(id: UInt8, sourceID: RequesterID) -> DeviceScope {
      DeviceScope(
        kind: .ioAPIC, enumerationID: id, startBus: sourceID.bus,
        path: [Step(device: sourceID.device, function: sourceID.function)])
    }
  }
}
