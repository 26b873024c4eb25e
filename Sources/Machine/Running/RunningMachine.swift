import Devices
import Hardware
import Linux
import PCI
import VTd

/// A machine from its configuration to its end. One thread builds it, runs it and takes it apart.
///
/// 1. What the configuration names is opened: RAM, the accelerator, the kernel, the serial port, images of disks.
/// 2. The board is made, and the devices are built onto it.
/// 3. BARs get their addresses, tables and kernel go into RAM, the CPUs to its entry.
/// 4. The CPUs run, until an event stops them: step 3 follows again (a reset), or they go on later (a pause), or it is
///    the end.
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

    /// The exit status of Nestling.
    public var exitStatus: Int32 {
      switch self {
      case .shutdown, .quit: 0
      case .debugExit(let status): status
      case .crashed: 1
      }
    }
  }

  private let configuration: MachineConfiguration
  private var rebootAction: MachineConfiguration.RebootAction
  let board: Board
  private let processors: any Processors
  public let characters: Chardevs
  private let serial: SerialConnection?
  let events: EventQueue
  private let terminationWatch: TerminationWatch?
  private let signals: TerminationSignals
  private let onEnding: @Sendable (_ exitStatus: Int32) -> Void
  /// nil where nothing is booted.
  private let image: StartImage?
  private let qtest: QTestServer?
  private let controller: MachineController
  private let hotplug: Hotplug

  /// Steps 1 and 2.
  /// - Parameters:
  ///   - interpreter: looks through what is typed on standard input.
  ///   - onEnding: called when the end begins or is requested, even while the machine's own thread hangs; from any
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
      signals = try TerminationSignals()
      // Before anything is opened, so that a signal ends a start that hangs.
      if let onEnding {
        terminationWatch = try TerminationWatch(signals.rawValue) { onEnding(Ending.quit.exitStatus) }
      } else {
        terminationWatch = nil
      }
      if configuration.exitsWithParent { try signals.includeEndOfParent(Process.parent) }
      events = try EventQueue()
    } catch {
      throw .system(error)
    }

    let memory = try Self.makeMemory(configuration.memory)
    let accelerator = try Self.makeAccelerator(configuration, memory: memory)
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
    let characters = try Chardevs(
      configuration.chardevs, interpreter: interpreter, interruption: signals.rawValue,
      onExit: { requestQuit(.terminal) })
    self.characters = characters
    let patience = Patience(until: signals.rawValue)
    let processors: any Processors
    let qtest: QTestServer?
    do {
      serial = try Self.makeSerial(configuration, characters)
      board = try Self.makeBoard(
        configuration, units: units, layout: layout, memory: memory, accelerator: accelerator, serialOutput: serial,
        events: events, patience: patience)
      processors = try accelerator.makeProcessors(board: board)
      qtest = try Self.makeQTest(
        configuration, characters, board: board, clock: (accelerator as? QTestAccelerator)?.steppedClock,
        patience: patience)
    } catch {
      // This removes their sockets from the file system.
      characters.stop()
      throw error
    }
    remapping = board.inspection
    let controller = MachineController(events: events, board: board, requestQuit: requestQuit)
    self.controller = controller
    hotplug = Hotplug(
      board: board, configuration: configuration, guestHasStarted: { controller.status != .prelaunch },
      tell: { controller.tell($0) })
    self.processors = processors
    self.qtest = qtest
    events.onPost {
      processors.requestStop()
      qtest?.requestPause()
    }
  }

  private static func makeMemory(_ configuration: MemoryConfiguration) throws(StartError) -> GuestMemory {
    let backing: GuestMemory.Backing =
      switch configuration.hugePages {
      case nil: configuration.isShared ? .shared : .anonymous
      case .hostDefault: .hugePages(nil)
      case .bytes(let size): .hugePages(size)
      }
    do {
      return try GuestMemory(
        size: configuration.size, lowLimit: BoardLayout.lowMemoryLimit(memorySize: configuration.size), backing: backing
      )
    } catch {
      throw .memory(size: configuration.size, error)
    }
  }

  private static func makeAccelerator(
    _ configuration: MachineConfiguration, memory: GuestMemory
  ) throws(StartError) -> any Accelerator {
    switch configuration.accelerator {
    case .kvm(let device):
      try KVMAccelerator(device: device, memory: memory, processorCount: configuration.processors.count)
    case .qtest: QTestAccelerator()
    }
  }

  private static func makeSerial(
    _ configuration: MachineConfiguration, _ characters: Chardevs
  ) throws(StartError) -> SerialConnection? {
    guard case .character(let id)? = configuration.serials.first else { return nil }
    do {
      return try SerialConnection(to: try characters.device(id))
    } catch let error as StartError {
      throw error
    } catch {
      throw .device(kind: "serial", problem: "\(error)")
    }
  }

  private static func makeQTest(
    _ configuration: MachineConfiguration, _ characters: Chardevs, board: Board, clock: SteppedClock?,
    patience: Patience
  ) throws(StartError) -> QTestServer? {
    guard let options = configuration.qtest else { return nil }
    let log: QTestLog?
    do {
      log = try QTestLog(options.log, patience: patience)
    } catch {
      throw .file(option: "-qtest-log", error)
    }
    do {
      return try QTestServer(on: try characters.device(options.device), log: log, board: board, clock: clock)
    } catch let error as StartError {
      throw error
    } catch {
      throw .device(kind: "qtest", problem: "\(error)")
    }
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

  /// The remapping units, whose registers and scopes are the same for as long as the machine lives.
  private static func placeUnits(_ configuration: MachineConfiguration) throws(StartError) -> [UnitPlacement] {
    do {
      return try configuration.unitPlacement(try configuration.devicePlacement())
    } catch {
      throw .configuration(error)
    }
  }

  private static func makeBoard(
    _ configuration: MachineConfiguration, units: [UnitPlacement], layout: BoardLayout, memory: GuestMemory,
    accelerator: any Accelerator, serialOutput: (any ChardevOutput)?, events: EventQueue, patience: Patience
  ) throws(StartError) -> Board {
    let devices: DeviceTree
    let hotplugPorts: [RequesterID]
    do {
      devices = DeviceTree(try DeviceAdmission(configuration))
      hotplugPorts = configuration.hotplugSlots(try configuration.devicePlacement()).map(\.port)
    } catch {
      throw .configuration(error)
    }
    try configuration.checkUnusedFiles(memory: memory)
    let tracing = configuration.trace
    let writer: TraceWriter?
    do {
      writer = try tracing.map { (tracing) throws(SystemError) in
        try TraceWriter(path: tracing.path, patience: patience)
      }
    } catch {
      throw .file(option: "-trace", error)
    }
    let trace: (String?) -> Trace? = { unit in
      guard let tracing, let writer else { return nil }
      return Trace(tracing.events, unit: unit, sink: writer)
    }
    let board: Board
    do {
      board = try Board(
        memory: memory, accelerator: accelerator, layout: layout, processorCount: configuration.processors.count,
        units: units, trace: trace, machineTrace: MachineTrace(tracing?.machineEvents ?? [], sink: writer),
        serialOutput: serialOutput, events: events, devices: devices,
        hotplug: configuration.hotplugWay, hotplugPorts: hotplugPorts)
    } catch {
      throw .unit(error)
    }
    do {
      for options in configuration.devices { try board.add(options, with: configuration) }
    } catch {
      // Devices of the host that are there already go back to it.
      board.removeDevices()
      throw error
    }
    board.slots.prepare()
    board.passthrough.resetBuses()
    return board
  }

  /// A character device of the configuration, for a frontend to be attached before the machine runs.
  public func chardev(_ id: Identifier) throws(StartError) -> Chardev { try characters.device(id) }

  /// Those that are there now, in the order of their admission.
  var devices: [Device] { board.devices.all }

  /// To look at the machine.
  public var inspection: MachineInspection {
    MachineInspection(configuration, board: board, characters: characters, processors: processors)
  }

  /// - Parameter listener: hears what a person is to know of passed-through devices, from any thread.
  public func onPassthroughNotice(_ listener: @escaping @Sendable (PassthroughNotice) -> Void) {
    board.passthrough.listen(listener)
  }

  /// To ask something of the machine, and to hear what happens to it.
  public var control: any MachineControl { controller }

  /// The machine's IOMMUs, to be looked at from any thread.
  public let remapping: RemappingInspection

  /// Step 3.
  private func load() throws(StartError) {
    try placeResources()
    if let image { try processors.reset(entry: try image.load(into: board.memory, layout: board.layout)) }
  }

  private func placeResources() throws(StartError) {
    // A qtest client gives the BARs their addresses itself, as there is no firmware that could have done it.
    guard configuration.accelerator != .qtest else { return }
    do {
      try board.placeResources()
    } catch {
      throw .placement(error)
    }
  }

  /// Steps 3 and 4. To be called once.
  public func run() throws(StartError) -> Ending {
    do {
      try load()
      try begin()
    } catch {
      stop()
      throw error
    }
    qtest?.resume()
    while true {
      let ready = Poll.readable([events.rawValue, signals.rawValue])
      if ready[1], signals.take() != nil { return end(.quit, .signal) }
      guard ready[0], let event = events.take() else { continue }
      if let ending = act(on: event) { return ending }
      qtest?.resume()
    }
  }

  private func begin() throws(StartError) {
    do {
      serial?.connect(board.serial)
      if !configuration.startsPaused {
        controller.set(.running)
        try processors.start()
      }
      // Last, so that nobody's first question meets a machine that is about to run.
      try characters.start()
    } catch {
      throw .system(error)
    }
  }

  /// - Returns: nil where the machine goes on.
  private func act(on event: MachineEvent) -> Ending? {
    switch event {
    case .shutdown: return end(.shutdown, .guestShutdown)
    case .debugExit(let status): return end(.debugExit(status: status), .guestShutdown)
    case .crashed(let what): return end(.crashed(what), .guestCrash)
    case .quit(let cause): return end(.quit, cause)
    case .tripleFault(let processor, let instructionPointer):
      controller.tell(.tripleFault(processor: processor, instructionPointer: instructionPointer))
      return resetByGuest()
    case .reset: return resetByGuest()
    case .hostReset: return reset(.monitorReset)
    case .request(let pending): return carryOut(pending)
    case .deviceError:
      pause(as: .internalError)
      return nil
    case .hostRequest(let identity, let patience): hotplug.takeBack(identity, patience: patience)
    case .surpriseRemoval(let identity): hotplug.pull(identity)
    case .slotReleased(let port): hotplug.slotReleased(port)
    case .left(let identities): hotplug.takeDown(identities)
    case .continuation(let rest): rest.run()
    }
    return nil
  }

  private func resetByGuest() -> Ending? {
    rebootAction == .reset ? reset(.guestReset) : end(.shutdown, .guestReset)
  }

  private func reset(_ cause: MachineCause) -> Ending? {
    processors.stop()
    qtest?.pause()
    // What the guest did beside its reset is gone with it; a person's wish is not.
    if case .quit(let cause)? = events.forgetGuestEvents() { return end(.quit, cause) }
    controller.tell(.reset(cause))
    do {
      board.completeRemovals()
      board.reset()
      hotplug.guestWasReset()
      // What was booted is not to see its former life; a qtest client finds RAM as it left it, as in QEMU.
      if image != nil { try board.memory.clear() }
      try load()
      if controller.status == .running { try processors.start() }
      // As in QEMU: what failed it is reset, and somebody has it go on.
      if controller.status == .internalError { controller.set(.prelaunch) }
    } catch {
      return end(.crashed("reset: \(error)"), .guestCrash)
    }
    return nil
  }

  /// - Returns: nil where the machine goes on, whether or not the request was carried out.
  private func carryOut(_ pending: PendingRequest) -> Ending? {
    do {
      switch pending.request {
      case .pause: pause()
      case .resume: try resume()
      case .addDevice(let description):
        hotplug.add(description, answering: pending)
        return nil
      case .removeDevice(let name, let isSurprise): try hotplug.remove(name, isSurprise: isSurprise)
      case .addNode(let node): try board.add(node)
      case .removeNode(let id): try board.removeNode(id)
      case .addObject(let object): try board.add(object)
      case .removeObject(let id): try board.removeObject(id)
      case .resizeNode(let id, let size): try board.resizeNode(id, to: size)
      case .setRebootAction(let action): rebootAction = action
      }
      // After the notices of it: an event comes before the answer to the command that brought it about.
      pending.answer()
    } catch let error as RequestError {
      pending.answer(error)
    } catch {
      pending.answer(.ended)
      return end(.crashed("\(error)"), .guestCrash)
    }
    return nil
  }

  private func pause(as status: MachineStatus = .paused) {
    processors.stop()
    guard controller.status == .running else { return }
    controller.set(status)
    controller.tell(.paused)
  }

  private func resume() throws {
    switch controller.status {
    case .running: return
    case .internalError: throw RequestError.needsReset
    case .prelaunch:
      // Devices may have come since the guest was loaded, and gone.
      board.slots.prepare()
      try placeResources()
    case .paused, .shutdown: break
    }
    controller.set(.running)
    controller.tell(.resumed)
    try processors.start()
  }

  private func end(_ ending: Ending, _ cause: MachineCause) -> Ending {
    onEnding(ending.exitStatus)
    controller.set(.shutdown)
    // Who waits for an answer waits no longer, whatever the end itself waits for.
    events.close()
    processors.stop()
    // Before the monitors' connections end.
    controller.tell(.shutdown(cause))
    stop()
    return ending
  }

  /// Takes apart a machine that will not run, and removes its sockets from the file system.
  public func abandon() { stop() }

  private func stop() {
    events.close()
    processors.stop()
    qtest?.stop()
    hotplug.stop()
    board.removeDevices()
    characters.stop()
    serial?.connect(nil)
  }
}
