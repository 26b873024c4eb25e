import PCI

/// The requested machine, as typed values.
public struct MachineConfiguration: Sendable {
  /// The guest's name, which only monitors show; nil without `-name`.
  public var name: String?
  public var accelerator = Accelerator.kvm(device: "/dev/kvm")
  public var machineType = MachineType.q35
  public var processors = ProcessorTopology()
  public var memory = MemoryConfiguration()
  /// The hotplug method below root ports.
  public var hotplugWay = HotplugWay.acpi
  /// The kernel and its data; nil if there is nothing to boot.
  public var boot: BootSource?
  /// The character devices, in the order in which they are opened.
  public var chardevs: [any ChardevOptions] = []
  /// The serial ports from COM1 on. A missing entry, or `.none`, means that there is no such port.
  public var serials: [SerialBackend] = []
  public var monitors: [MonitorOptions] = []
  public var blockNodes: [BlockNode] = []
  /// The objects, in the order given.
  public var objects: [any ObjectOptions] = []
  /// The netdevs, in the order in which they are opened.
  public var netdevs: [any NetdevOptions] = []
  /// The devices, in the order in which they are built.
  public var devices: [any DeviceOptions] = []
  public var rebootAction = RebootAction.reset
  /// Whether the CPUs wait for a monitor's `cont`.
  public var startsPaused = false
  /// Whether Nestling is killed when the process that started it ends.
  public var exitsWithParent = false
  public var logItems: Set<LogItem> = []
  /// The file for log items; nil for standard error.
  public var logPath: String?
  /// The trace events to write; nil for none.
  public var trace: TraceConfiguration?
  /// The qtest client's connection; nil if no qtest client drives the board.
  public var qtest: QTestOptions?

  public init() {}

  public enum Accelerator: Hashable, Sendable {
    case kvm(device: String)
    /// No CPU: the qtest client (`MachineConfiguration.qtest`) makes a CPU's accesses, and no kernel is needed.
    case qtest
  }

  public enum MachineType: String, ChoiceValue {
    case q35
  }

  /// The action on a guest's reset.
  public enum RebootAction: String, ChoiceValue {
    case reset
    case shutdown
  }

  /// The files that Nestling loads into guest memory before the guest starts.
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

  /// Whether other processes can map RAM: because of the options for RAM, or because a device or a netdev needs it
  /// from the start.
  public var sharesMemory: Bool {
    memory.isShared || memory.hugePages != nil || devices.contains { type(of: $0).needsSharedMemory }
      || netdevs.contains { type(of: $0).needsSharedMemory }
  }

  /// An item of `-d`.
  public enum LogItem: String, ChoiceValue {
    /// The IOMMU's counters, when Nestling ends.
    case iommu
  }
}

/// Guest RAM.
public struct MemoryConfiguration: Hashable, Sendable {
  /// The size in bytes, a multiple of the size of the pages.
  public var size: UInt64 = 128 << 20
  /// Whether other processes can map the RAM. If so, RAM is a memfd, for which few hosts use transparent huge pages.
  public var isShared = false
  /// The size of the pages from the host's pool of huge pages, which makes the RAM shared; nil for ordinary pages.
  public var hugePages: HugePageSize?

  public init() {}

  public enum HugePageSize: Hashable, Sendable {
    /// The host's default.
    case hostDefault
    case bytes(UInt64)
  }

  public static let minimumSize: UInt64 = 16 << 20
  /// This size leaves room in 46 bits of physical address for the 64-bit window of BARs.
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

  /// The largest KVM_MAX_VCPUS of any kernel; start-up asks the host's KVM for its own limit.
  public static let maximumCount = 4096
}

/// The host's end of a serial port.
public enum SerialBackend: Hashable, Sendable {
  /// There is no port.
  case none
  /// A character device, by its id.
  case chardev(Identifier)
}

/// The options `-qtest` and `-qtest-log`.
public struct QTestOptions: Hashable, Sendable {
  /// The id of the client's character device.
  public var device: Identifier
  public var log = Log.standardError

  public init(device: Identifier) { self.device = device }

  /// The destination of the log of commands and answers.
  public enum Log: Hashable, Sendable {
    case none
    case standardError
    /// A file, which is truncated first.
    case file(path: String)
  }
}
