import PCI

/// The machine that is wanted, as values: from the command line, and later QMP; nothing here is text to parse.
public struct MachineConfiguration: Sendable {
  /// The guest's name, for people; nil where nobody gave it one.
  public var name: String?
  public var accelerator = Accelerator.kvm(device: "/dev/kvm")
  public var machineType = MachineType.q35
  public var processors = ProcessorTopology()
  public var memory = MemoryConfiguration()
  /// How devices come and go below root ports.
  public var hotplugWay = HotplugWay.acpi
  /// Nil where there is nothing to boot.
  public var boot: BootSource?
  /// In the order given, which is the order in which they are opened.
  public var chardevs: [any ChardevOptions] = []
  /// COM1 and on. Empty, or `.none` in a place, for no port there.
  public var serials: [SerialBackend] = []
  public var monitors: [MonitorOptions] = []
  public var blockNodes: [BlockNode] = []
  /// In the order given.
  public var objects: [any ObjectOptions] = []
  /// In the order given, which is the order in which they are built.
  public var devices: [any DeviceOptions] = []
  public var rebootAction = RebootAction.reset
  /// The CPUs stand still until a monitor's `cont`.
  public var startsPaused = false
  /// Whether Nestling is killed when the process that started it ends.
  public var exitsWithParent = false
  public var logItems: Set<LogItem> = []
  /// Where log items go; nil for standard error.
  public var logPath: String?
  /// Nil where no trace event is wanted.
  public var trace: TraceConfiguration?
  /// Nil where no qtest client drives the board.
  public var qtest: QTestOptions?

  public init() {}

  public enum Accelerator: Hashable, Sendable {
    case kvm(device: String)
    /// No CPU: what one would do comes by `MachineConfiguration.qtest`, and nothing needs to be booted.
    case qtest
  }

  public enum MachineType: String, ChoiceValue {
    case q35
  }

  /// What the guest's reset does.
  public enum RebootAction: String, ChoiceValue {
    case reset
    case shutdown
  }

  /// What is loaded into guest memory before it starts.
  public struct BootSource: Hashable, Sendable {
    /// A bzImage, an ELF with a PVH note, or a Multiboot ELF.
    public var kernel: String
    public var initrd: String?
    public var commandLine: String

    public init(kernel: String, initrd: String? = nil, commandLine: String = "") {
      self.kernel = kernel
      self.initrd = initrd
      self.commandLine = commandLine
    }
  }

  /// What `-d` asks for.
  public enum LogItem: String, ChoiceValue {
    /// The IOMMU's counters, when Nestling ends.
    case iommu
  }
}

/// Guest RAM.
public struct MemoryConfiguration: Hashable, Sendable {
  /// In bytes, a multiple of the page size used.
  public var size: UInt64 = 128 << 20
  /// Whether other processes can map it: it is a memfd then, for which few hosts have large pages.
  public var isShared = false
  /// From the host's pool of huge pages, which makes it shared; nil for ordinary pages.
  public var hugePages: HugePageSize?

  public init() {}

  public enum HugePageSize: Hashable, Sendable {
    /// The host's default.
    case hostDefault
    case bytes(UInt64)
  }

  public static let minimumSize: UInt64 = 16 << 20
  /// What fits 46 bits of physical address with room for the 64-bit window of BARs above it.
  public static let maximumSize: UInt64 = 1 << 45
}

/// The CPUs and how CPUID groups them.
public struct ProcessorTopology: Hashable, Sendable {
  public var sockets: Int
  public var coresPerSocket: Int
  public var threadsPerCore: Int

  public init(sockets: Int = 1, coresPerSocket: Int = 1, threadsPerCore: Int = 1) {
    self.sockets = sockets
    self.coresPerSocket = coresPerSocket
    self.threadsPerCore = threadsPerCore
  }

  public var count: Int { sockets * coresPerSocket * threadsPerCore }

  /// More than any KVM has (KVM_MAX_VCPUS is at most 4096); the host's own limit is asked at start.
  public static let maximumCount = 4096
}
