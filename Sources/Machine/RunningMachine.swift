import Devices
import Glibc
import Hardware
import KVM
import Linux
import PCI
import VTd

/// A machine from its configuration to its end. One thread builds it, runs it and takes it apart.
///
/// 1. What the configuration names is opened: KVM, RAM, the serial port, images of disks.
/// 2. The board is made, and the devices are built onto it.
/// 3. BARs get their addresses, tables and kernel go into RAM, the CPUs to its entry.
/// 4. The CPUs run. An event ends that, and either step 3 follows again (a reset), or the end.
public final class RunningMachine {
  /// How it ended.
  public enum Ending: Hashable, Sendable {
    /// The guest switched itself off, or reset itself where that ends Nestling.
    case shutdown
    /// A person or a signal asked for it.
    case quit
    /// isa-debug-exit.
    case debugExit(status: Int32)
    /// One line that says what happened.
    case crashed(String)
  }

  private let configuration: MachineConfiguration
  private let board: Board
  private let processors: Processors
  private let serial: SerialConnection?
  private let events: EventQueue
  private let signals: TerminationSignals
  private let kernel: ImageFile
  private let initialRAMDisk: ImageFile?
  private let boot: MachineConfiguration.BootSource
  private let tables: ACPITables

  /// Steps 1 and 2.
  /// - Parameter interpreter: looks through what is typed on standard input.
  public init(_ configuration: MachineConfiguration, interpreter: any InputInterpreter) throws(StartError) {
    self.configuration = configuration
    guard let boot = configuration.boot else { throw .configuration(.nothingToBoot) }
    self.boot = boot
    let device =
      switch configuration.accelerator {
      case .kvm(let device): device
      }
    Thread.installKick()
    do {
      signals = try TerminationSignals()
      events = try EventQueue()
    } catch {
      throw .system(error)
    }

    let memory = try Self.makeMemory(configuration.memory)
    do {
      kernel = try ImageFile(opening: boot.kernel, memory: memory)
    } catch {
      throw .file(option: "-kernel", error)
    }
    do {
      initialRAMDisk = try boot.initrd.map { path throws(SystemError) in try ImageFile(opening: path, memory: memory) }
    } catch {
      throw .file(option: "-initrd", error)
    }

    let count = configuration.processors.count
    let machine: VirtualMachine
    let identification: ProcessorIdentification
    do throws(KVMError) {
      let system = try KVMSystem(path: device)
      guard count <= system.processorLimit else {
        throw .tooManyProcessors(asked: count, most: system.processorLimit)
      }
      machine = try VirtualMachine(system: system, memory: memory, ioapicPins: IOAPIC.pinCount)
      identification = try ProcessorIdentification(system: system, processorCount: count)
    } catch {
      throw .kvm(device: device, error)
    }
    let width = identification.physicalAddressWidth
    guard let layout = BoardLayout(memorySize: configuration.memory.size, physicalAddressWidth: width) else {
      throw .addressSpace(memorySize: configuration.memory.size, physicalAddressWidth: width)
    }

    do {
      serial = try SerialConnection(
        configuration.serials.first ?? .none, interpreter: interpreter, events: events,
        interruption: signals.rawValue)
    } catch {
      throw .file(option: "-serial", error)
    }
    let unitOptions = configuration.devices.lazy.compactMap { $0 as? IntelIOMMUOptions }.first
    do {
      board = try Board(
        memory: memory, machine: machine, layout: layout, processorCount: count,
        unitOptions: unitOptions?.unitOptions, serialOutput: serial?.output, events: events)
    } catch {
      throw .unit(error)
    }
    do {
      let placement = try configuration.devicePlacement()
      for (device, address) in zip(configuration.devices, placement) {
        if let device = device as? any BoardDevice {
          try device.build(on: board, at: address, with: configuration)
        }
      }
    } catch let error as StartError {
      throw error
    } catch let error as ConfigurationError {
      throw .configuration(error)
    } catch {
      throw .device(kind: "?", problem: "\(error)")
    }

    do {
      processors = try Processors(count: count, identification: identification, board: board)
    } catch {
      throw .kvm(device: device, error)
    }
    do {
      tables = try ACPITables.build(
        ACPIConfiguration(
          localAPICs: (0..<UInt32(count)).map { $0 }, highWindow: layout.memory64Window,
          remapping: unitOptions.map(Self.remapping)))
    } catch {
      throw .device(kind: "ACPI", problem: error.description)
    }
    let processors = processors
    events.onPost { processors.requestStop() }
  }

  private static func makeMemory(_ configuration: MemoryConfiguration) throws(StartError) -> GuestMemory {
    let pages: GuestMemory.PageSize =
      switch configuration.hugePages {
      case nil: .standard
      case .hostDefault: .huge(nil)
      case .bytes(let size): .huge(size)
      }
    do {
      return try GuestMemory(
        size: configuration.size, lowLimit: BoardLayout.lowMemoryLimit(memorySize: configuration.size), pages: pages)
    } catch {
      throw .memory(size: configuration.size, error)
    }
  }

  private static func remapping(_ options: IntelIOMMUOptions) -> DMARemapping {
    DMARemapping(
      hostAddressWidth: Int(options.addressWidth), interruptRemapping: options.offersInterruptRemapping,
      x2APICOptOut: !options.offersExtendedInterrupts,
      units: [.init(scopes: [.ioAPIC(id: 0, sourceID: BoardLayout.ioapicRequester)])],
      translationServices: options.deviceIOTLB ? [.init()] : [])
  }

  /// Step 3.
  private func load() throws(StartError) {
    do {
      try board.placeResources()
    } catch {
      throw .placement(error)
    }
    guard board.memory.write(tables.bytes, to: tables.address) else {
      throw .system(SystemError("ACPI tables", "RAM at 0x\(String(tables.address, radix: 16))", code: EFAULT))
    }
    let request = BootRequest(
      kernel: BootFile(image: kernel, name: boot.kernel),
      initialRAMDisk: initialRAMDisk.map { BootFile(image: $0, name: boot.initrd ?? "") },
      commandLine: boot.commandLine, layout: board.layout.memoryLayout, rootPointer: tables.rootPointer)
    let entry: BootEntry
    do {
      entry = try request.load(into: board.memory)
    } catch {
      throw .boot(error)
    }
    do {
      try processors.reset(entry: entry)
    } catch {
      throw .kvm(device: "", error)
    }
  }

  /// What a person may want to know of a guest that goes on.
  public enum Notice: Hashable, Sendable {
    case tripleFault(processor: Int, instructionPointer: UInt64?)
  }

  /// Steps 3 and 4. To be called once.
  /// - Parameter notice: told on this thread, while no CPU runs.
  public func run(notice: (Notice) -> Void) throws(StartError) -> Ending {
    do {
      try load()
      do {
        if let serial, let port = board.serial { try serial.start(port: port) }
        try processors.start()
      } catch {
        throw StartError.system(error)
      }
    } catch let error as StartError {
      stop()
      throw error
    } catch {
      stop()
      throw .device(kind: "?", problem: "\(error)")
    }
    while true {
      let ready = Poll.readable([events.rawValue, signals.rawValue])
      if ready[1], signals.take() != nil {
        stop()
        return .quit
      }
      guard ready[0], let event = events.take() else { continue }
      if case .tripleFault(let processor, let instructionPointer) = event {
        notice(.tripleFault(processor: processor, instructionPointer: instructionPointer))
      }
      if let ending = ending(of: event) {
        stop()
        return ending
      }
      processors.stop()
      // What the guest did beside its reset is gone with it; a person's wish is not.
      if events.take() == .quit {
        stop()
        return .quit
      }
      do {
        try restart()
      } catch {
        stop()
        return .crashed("reset: \(error)")
      }
    }
  }

  /// nil for a reset that is carried out.
  private func ending(of event: MachineEvent) -> Ending? {
    switch event {
    case .shutdown: .shutdown
    case .reset, .tripleFault: configuration.rebootAction == .reset ? nil : .shutdown
    case .debugExit(let status): .debugExit(status: status)
    case .quit: .quit
    case .crashed(let what): .crashed(what)
    }
  }

  /// The CPUs have been stopped.
  private func restart() throws(StartError) {
    board.reset()
    do {
      try board.memory.clear()
      try load()
      try processors.start()
    } catch let error as SystemError {
      throw .system(error)
    } catch let error as StartError {
      throw error
    } catch {
      throw .device(kind: "?", problem: "\(error)")
    }
  }

  private func stop() {
    events.onPost(nil)
    processors.stop()
    board.removeDevices()
    serial?.stop()
  }

  /// The IOMMU's counters, a line each; empty without an IOMMU.
  public var unitCounters: [(name: String, value: UInt64)] { board.unit?.counters.named ?? [] }
}
