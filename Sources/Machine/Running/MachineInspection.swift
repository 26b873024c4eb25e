import Hardware
import Linux
import PCI

/// A machine that runs, for those who look at it: monitors. Everything is read as it is at the moment, from any thread.
public final class MachineInspection: Sendable {
  /// A function on PCI, and where it decodes.
  public struct Function: Sendable {
    public struct Region: Hashable, Sendable {
      public let register: BaseAddressRegister
      /// As the register stands; 0 where nobody has placed it.
      public let address: UInt64
    }

    public let address: RequesterID
    /// Of the device that it belongs to; nil for one without.
    public let id: String?
    public let description: FunctionDescription
    public let regions: [Region]
    /// Interrupt Line, which firmware and operating systems write for themselves.
    public let interruptLine: UInt8
    /// nil for a function that is no bridge.
    public var bridge: Bridge?
  }

  /// What a bridge leads to.
  public struct Bridge: Sendable {
    public let header: BridgeHeader
    /// In the order of their addresses.
    public let functions: [Function]
  }

  /// A character device.
  public struct ChardevState: Hashable, Sendable {
    public let id: String
    /// What it is connected to, as QEMU tells it: `unix:/tmp/socket,server=on`.
    public let name: String
    public let hasFrontend: Bool
  }

  /// A block node, and what it has now.
  public struct BlockState: Sendable {
    public let node: BlockNode
    /// Of its file, in bytes; nil where it cannot be opened.
    public let size: UInt64?
    /// The paths of the devices that have it.
    public let users: [String]
  }

  public let configuration: MachineConfiguration
  let board: Board
  private let characters: Chardevs
  private let processors: any Processors

  init(
    _ configuration: MachineConfiguration, board: Board, characters: Chardevs, processors: any Processors
  ) {
    self.configuration = configuration
    self.board = board
    self.characters = characters
    self.processors = processors
  }

  /// Of bus 0, in the order of their addresses; the others are within the bridges.
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
    characters.all.map {
      ChardevState(id: $0.options.id?.text ?? "", name: $0.endpointName, hasFrontend: $0.hasFrontend)
    }
  }

  /// In the order of their admission.
  public var devices: [Device] { board.devices.all }
  /// In the order in which they came.
  public var objects: [any ObjectOptions] { board.devices.objects }

  /// In the order in which they came. It may wait for their files.
  public var blockNodes: [BlockState] {
    let devices = board.devices.all
    return board.devices.blockNodes.map { node in
      BlockState(
        node: node, size: try? node.openUnlocked(memory: board.memory, readOnly: true).size,
        users: devices.filter { $0.options.nodes.contains { $0.id == node.id } }.map(\.path))
    }
  }

  /// The files that go with what a request removes, if it is the last user. Held by the asker they are closed on its
  /// thread, and not on the machine's: closing waits for the host.
  public func files(removedBy request: MachineRequest) -> [PassedDescriptor] {
    switch request {
    case .removeNode(let id): return board.devices.blockNodes.filter { $0.id == id }.compactMap(\.file)
    case .removeObject(let id):
      return board.devices.objects.filter { $0.id == id }.compactMap { ($0 as? any DescriptorTaking)?.file?.file }
    default: return []
    }
  }

  /// The kernel's numbers of the CPUs' threads, in the CPUs' order; empty while there are none.
  public var processorThreads: [Int] { processors.threadIDs }

  /// How long exits have kept the CPUs out of the guest, in the CPUs' order; empty while nothing is measured.
  public var exitSummaries: [ExitSummary] { processors.exitSummaries }
  /// Begins to measure that, anew, or ends it.
  public func measureExits(_ isOn: Bool) { processors.measureExits(isOn) }
}

extension ChardevOptions {
  /// What it is connected to, as QEMU tells it.
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
