import Hardware
import Linux
import PCI

/// The state of a running machine, for monitors. Each property reads the current state. May be used on any thread.
public final class MachineInspection: Sendable {
  /// A PCI function with its regions.
  public struct Function: Sendable {
    public struct Region: Hashable, Sendable {
      public let register: BaseAddressRegister
      /// The address in the register; 0 before the first write of an address.
      public let address: UInt64
    }

    public let address: RequesterID
    /// The id of the function's device; nil if the device has none.
    public let id: String?
    public let description: FunctionDescription
    public let regions: [Region]
    /// The register Interrupt Line, which firmware and operating systems write for their own use.
    public let interruptLine: UInt8
    /// The bridge's registers and functions; nil for a function that is not a bridge.
    public var bridge: Bridge?
  }

  /// The registers of a bridge and the functions below it.
  public struct Bridge: Sendable {
    public let header: BridgeHeader
    /// The functions below the bridge, in the order of their addresses.
    public let functions: [Function]
  }

  /// The state of a chardev.
  public struct ChardevState: Hashable, Sendable {
    public let id: String
    /// The endpoint of the chardev in QEMU's format: `unix:/tmp/socket,server=on`.
    public let name: String
    public let hasFrontend: Bool
  }

  /// The state of a block node.
  public struct BlockState: Sendable {
    public let node: BlockNode
    /// The size of the file in bytes; nil if the file cannot be opened.
    public let size: UInt64?
    /// The QOM paths of the devices that use the node.
    public let users: [String]
  }

  /// The state of a netdev.
  public struct NetdevState: Hashable, Sendable {
    public let id: String
    public let typeName: String
    public let status: NetdevStatus
    public let isLinkUp: Bool
  }

  /// The state of a network device.
  public struct NetworkCard: Hashable, Sendable {
    public let name: String
    public let typeName: String
    /// The MAC address, which the driver may have changed: 52:54:00:12:34:56.
    public let address: String
    public let isLinkUp: Bool
    public let netdev: NetdevState?
  }

  public let configuration: MachineConfiguration
  let board: Board
  private let allChardevs: Chardevs
  private let processors: any Processors

  init(
    _ configuration: MachineConfiguration, board: Board, chardevs: Chardevs, processors: any Processors
  ) {
    self.configuration = configuration
    self.board = board
    allChardevs = chardevs
    self.processors = processors
  }

  /// The functions on bus 0, in the order of their addresses. The bridges contain the others.
  public var functions: [Function] {
    let ports = board.busRoutes.ports
    return board.rootBus.all.map { function in
      let port = ports.first { $0.function === function }
      return describe(
        function, bridge: port.map { Bridge(header: $0.header, functions: $0.bus.all.map { describe($0) }) })
    }
  }

  private func describe(_ function: PCI.Function, bridge: Bridge? = nil) -> Function {
    Function(
      address: function.requester.id, id: board.devices.device(of: function)?.id?.text,
      description: function.description,
      regions: function.description.baseAddressRegisters.map { register in
        Function.Region(register: register, address: Self.address(of: register, function))
      }, interruptLine: UInt8(truncatingIfNeeded: function.readConfiguration(offset: 0x3c, width: .byte)),
      bridge: bridge)
  }

  private static func address(of register: BaseAddressRegister, _ function: PCI.Function) -> UInt64 {
    let low = function.readConfiguration(offset: register.offset, width: .doubleword)
    switch register.space {
    case .io: return low & 0xfffc
    case .memory32: return low & 0xffff_fff0
    case .expansionROM: return low & 0xffff_f800
    case .memory64:
      return low & 0xffff_fff0 | function.readConfiguration(offset: register.offset + 4, width: .doubleword) << 32
    }
  }

  public var chardevs: [ChardevState] {
    allChardevs.all.map {
      ChardevState(id: $0.options.id?.text ?? "", name: $0.endpointName, hasFrontend: $0.hasFrontend)
    }
  }

  /// The devices, in the order of their admission.
  public var devices: [Device] { board.devices.all }
  /// The objects, in the order in which they were added.
  public var objects: [any ObjectOptions] { board.devices.objects }

  /// The netdevs that no device uses.
  public var freeNetdevs: [NetdevState] { board.networks.inspection.netdevs }
  /// The network devices with their netdevs.
  public var networkCards: [NetworkCard] { board.networks.inspection.cards }

  /// The block nodes, in the order in which they were added. This opens their files, which may block.
  public var blockNodes: [BlockState] {
    let devices = board.devices.all
    return board.devices.blockNodes.map { node in
      BlockState(
        node: node, size: try? node.openUnlocked(memory: board.memory, readOnly: true).size,
        users: devices.filter { $0.options.nodes.contains { $0.id == node.id } }.map(\.path))
    }
  }

  /// Returns the files of the backend that a request removes. The requester holds the files until it has the answer, so
  /// that they are closed on its thread, not on the machine's thread: closing a file may block on the host.
  public func files(removedBy request: MachineRequest) -> [PassedDescriptor] {
    switch request {
    case .removeNode(let id): return board.devices.blockNodes.filter { $0.id == id }.compactMap(\.file)
    case .removeObject(let id):
      return board.devices.objects.filter { $0.id == id }.compactMap { ($0 as? any DescriptorTaking)?.file?.file }
    default: return []
    }
  }

  /// The kernel's thread IDs of the CPUs' threads, in the CPUs' order; empty while the CPUs are stopped.
  public var processorThreads: [Int] { processors.threadIDs }

  /// The times for which exits have kept each CPU out of the guest, in the CPUs' order; empty while measuring is off.
  public var exitSummaries: [ExitSummary] { processors.exitSummaries }
  /// Restarts the measuring of exits, or ends it.
  public func measureExits(_ isOn: Bool) { processors.measureExits(isOn) }
}

extension ChardevOptions {
  /// The endpoint of the chardev in QEMU's format.
  var endpointName: String {
    switch self {
    case let options as SocketChardevOptions:
      let name = options.path.map { "unix:" + $0 } ?? "tcp:\(options.host ?? ""):\(options.port ?? 0)"
      return name + (options.server ? ",server=on" : "")
    case is FileChardevOptions: return "file"
    default: return Self.typeName
    }
  }
}
