import Devices
import Hardware
import Linux
import PCI
import Passthrough
import VTd

/// A machine from its configuration to its end. One thread, the machine's thread, builds it, runs it and ends it.
///
/// 1. Open the parts that the configuration names: RAM, the accelerator, the kernel, chardevs.
/// 2. Make the board, and build the devices onto it, with their disk images.
/// 3. Place the BARs, load the ACPI tables and the kernel into RAM, and set the CPUs to the kernel's entry point.
/// 4. Run the CPUs until an event stops them. After a reset, continue with step 3. After a pause, the CPUs resume
///    later. Other events end the machine.
public final class RunningMachine {
  /// The way in which the machine ended.
  public enum Ending: Hashable, Sendable {
    /// The guest switched itself off, or reset itself while the reboot action was `shutdown`.
    case shutdown
    /// The terminal, a monitor or a signal requested the end.
    case quit
    /// The guest wrote to isa-debug-exit.
    case debugExit(status: Int32)
    case crashed(GuestCrash)
    /// The machine could not be reset, or could not resume its CPUs.
    case failed(StartError, isReset: Bool)

    /// The exit status of Nestling.
    public var exitStatus: Int32 {
      switch self {
      case .shutdown, .quit: 0
      case .debugExit(let status): status
      case .crashed, .failed: 1
      }
    }
  }

  let configuration: MachineConfiguration
  var rebootAction: MachineConfiguration.RebootAction
  let board: Board
  let processors: any Processors
  public let chardevs: Chardevs
  let serial: SerialConnection?
  let events: EventQueue
  private let terminationWatch: TerminationWatch?
  let signals: TerminationSignals
  /// Serves timers, signals, chardevs that do not block, and vectors without a route in the kernel's table.
  private let loop: EventLoop
  let onEnding: @Sendable (_ exitStatus: Int32) -> Void
  /// The initial contents of RAM; nil if no kernel is booted.
  let image: StartImage?
  let qtest: QTestServer?
  let controller: MachineController
  let hotplug: Hotplug

  /// Carries out steps 1 and 2.
  /// - Parameters:
  ///   - interpreter: filters the input of the terminal.
  ///   - onEnding: called when the end begins or is requested, even while the machine's thread hangs. Called on any
  ///     thread, possibly more than once.
  public init(
    _ configuration: MachineConfiguration, interpreter: any InputInterpreter,
    onEnding: (@Sendable (_ exitStatus: Int32) -> Void)? = nil
  ) throws(StartError) {
    self.configuration = configuration
    rebootAction = configuration.rebootAction
    self.onEnding = onEnding ?? { _ in }
    Thread.installKick()
    do {
      // Before the loop's thread starts, because that thread must block the signals, too.
      signals = try TerminationSignals()
      loop = try EventLoop(name: "events")
      // Watch before anything is opened, so that a signal can end a start that hangs.
      if let onEnding {
        terminationWatch = try TerminationWatch(signals.rawValue, on: loop) { onEnding(Ending.quit.exitStatus) }
      } else {
        terminationWatch = nil
      }
      if configuration.exitsWithParent { try signals.includeEndOfParent(Process.parent) }
      events = try EventQueue()
    } catch {
      throw .system(error)
    }

    let memory = try Self.makeMemory(configuration)
    let accelerator = try Self.makeAccelerator(configuration, memory: memory, loop: loop)
    let layout = try Self.makeLayout(configuration, accelerator)
    let units = try Self.placeUnits(configuration)
    image = try configuration.boot.map { boot throws(StartError) in
      try StartImage(boot, for: configuration, units: units, layout: layout, memory: memory)
    }
    if image == nil, configuration.accelerator != .qtest { throw .configuration(.nothingToBoot) }
    let events = events
    let requestQuit: @Sendable (MachineCause) -> Void = { cause in
      onEnding?(Ending.quit.exitStatus)
      events.post(.quit(cause))
    }
    let chardevs = try Chardevs(
      configuration.chardevs, on: loop, interpreter: interpreter, interruption: signals.rawValue,
      onExit: { requestQuit(.terminal) })
    self.chardevs = chardevs
    let patience = Patience(until: signals.rawValue)
    let processors: any Processors
    let qtest: QTestServer?
    do {
      serial = try Self.makeSerial(configuration, chardevs)
      board = try Self.makeBoard(
        configuration, units: units, layout: layout, memory: memory, accelerator: accelerator, serialOutput: serial,
        chardevs: chardevs, events: events, loop: loop, patience: patience)
      processors = try accelerator.makeProcessors(board: board)
      qtest = try Self.makeQTest(
        configuration, chardevs, board: board, clock: (accelerator as? QTestAccelerator)?.steppedClock,
        patience: patience)
    } catch {
      // This removes the chardevs' sockets from the file system.
      chardevs.stop()
      throw error
    }
    remapping = board.inspection
    let controller = MachineController(events: events, board: board, requestQuit: requestQuit)
    self.controller = controller
    hotplug = Hotplug(
      board: board, configuration: configuration, guestHasStarted: { controller.status != .prelaunch },
      notify: { controller.notify($0) })
    self.processors = processors
    self.qtest = qtest
    events.onPost {
      processors.requestStop()
      qtest?.requestPause()
    }
  }

  private static func makeMemory(_ machine: MachineConfiguration) throws(StartError) -> GuestMemory {
    let configuration = machine.memory
    let backing: GuestMemory.Backing =
      switch configuration.hugePages {
      case nil: machine.sharesMemory ? .shared : .anonymous
      case .hostDefault: .hugePages(nil)
      case .bytes(let size): .hugePages(size)
      }
    let limit = BoardLayout.lowMemoryLimit(memorySize: configuration.size)
    return try mapError(try GuestMemory(size: configuration.size, lowLimit: limit, backing: backing)) {
      StartError.memory(size: configuration.size, $0)
    }
  }

  private static func makeAccelerator(
    _ configuration: MachineConfiguration, memory: GuestMemory, loop: EventLoop
  ) throws(StartError) -> any Accelerator {
    switch configuration.accelerator {
    case .kvm(let device):
      try KVMAccelerator(
        device: device, memory: memory, processorCount: configuration.processors.count, loop: loop)
    case .qtest: QTestAccelerator()
    }
  }

  private static func makeSerial(
    _ configuration: MachineConfiguration, _ chardevs: Chardevs
  ) throws(StartError) -> SerialConnection? {
    guard case .chardev(let id)? = configuration.serials.first else { return nil }
    return try SerialConnection(to: try chardevs.device(id))
  }

  private static func makeQTest(
    _ configuration: MachineConfiguration, _ chardevs: Chardevs, board: Board, clock: SteppedClock?,
    patience: Patience
  ) throws(StartError) -> QTestServer? {
    guard let options = configuration.qtest else { return nil }
    let log = try mapError(try QTestLog(options.log, patience: patience)) {
      StartError.file(option: "-qtest-log", $0)
    }
    return try QTestServer(on: try chardevs.device(options.device), log: log, board: board, clock: clock)
  }

  private static func makeLayout(
    _ configuration: MachineConfiguration, _ accelerator: any Accelerator
  ) throws(StartError) -> BoardLayout {
    let size = configuration.memory.size
    let width = accelerator.physicalAddressWidth
    guard let layout = BoardLayout(memorySize: size, physicalAddressWidth: width) else {
      throw .addressSpace(memorySize: size, physicalAddressWidth: width)
    }
    return layout
  }

  /// Determines the register pages and scopes of the remapping units, which do not change during the machine's life.
  private static func placeUnits(_ configuration: MachineConfiguration) throws(StartError) -> [UnitPlacement] {
    try mapError(try configuration.unitPlacement(try configuration.devicePlacement()), StartError.configuration)
  }

  private static func makeBoard(
    _ configuration: MachineConfiguration, units: [UnitPlacement], layout: BoardLayout, memory: GuestMemory,
    accelerator: any Accelerator, serialOutput: (any ChardevOutput)?, chardevs: Chardevs, events: EventQueue,
    loop: EventLoop, patience: Patience
  ) throws(StartError) -> Board {
    let devices = DeviceTree(try mapError(try DeviceAdmission(configuration), StartError.configuration))
    let placement = try mapError(try configuration.devicePlacement(), StartError.configuration)
    let hotplugPorts = configuration.hotplugSlots(placement).map(\.port)
    try configuration.checkUnusedFiles(memory: memory)
    let tracing = configuration.trace
    let writer = try tracing.map { (tracing) throws(StartError) in
      try mapError(try TraceWriter(path: tracing.path, patience: patience)) { StartError.file(option: "-trace", $0) }
    }
    let trace: (String?) -> Trace? = { unit in
      guard let tracing, let writer else { return nil }
      return Trace(tracing.events, unit: unit, sink: writer)
    }
    let board = try mapError(
      try Board(
        memory: memory, accelerator: accelerator, layout: layout, processorCount: configuration.processors.count,
        units: units, trace: trace, machineTrace: MachineTrace(tracing?.machineEvents ?? [], sink: writer),
        serialOutput: serialOutput, chardevs: chardevs, events: events, devices: devices,
        networks: Networks(on: loop), hotplug: configuration.hotplugWay, hotplugPorts: hotplugPorts), StartError.unit)
    do {
      for options in configuration.netdevs { try board.openNetdev(options) }
      for options in configuration.devices { try board.add(options, with: configuration) }
    } catch {
      // Return the host devices that were already added.
      board.removeDevices()
      throw error
    }
    board.slots.prepare()
    board.passthrough.resetBuses()
    return board
  }

  /// Returns a chardev of the configuration, to which a frontend can be attached before the machine runs.
  public func chardev(_ id: Identifier) throws(StartError) -> Chardev { try chardevs.device(id) }

  /// The devices, in the order of their admission.
  var devices: [Device] { board.devices.all }

  /// The state of the machine, for monitors.
  public var inspection: MachineInspection {
    MachineInspection(configuration, board: board, chardevs: chardevs, processors: processors)
  }

  /// - Parameter listener: called on any thread, for each notice about passed-through devices for the user.
  public func onPassthroughNotice(_ listener: @escaping @Sendable (PassthroughNotice) -> Void) {
    board.passthrough.listen(listener)
  }

  /// The interface for requests to the machine and for listeners to its notices.
  public var control: any MachineControl { controller }

  /// The state of the machine's IOMMUs. May be used on any thread.
  public let remapping: RemappingInspection

  /// Takes apart a machine that has not run and will not run, and removes its sockets from the file system.
  public func abandon() { stop() }

  func stop() {
    events.close()
    processors.stop()
    qtest?.stop()
    hotplug.stop()
    board.removeDevices()
    chardevs.stop()
    serial?.connect(nil)
    loop.stop()
  }
}
