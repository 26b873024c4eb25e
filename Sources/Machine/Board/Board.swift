import Devices
import Hardware
import Linux
import PCI
import Passthrough
import Synchronization
import VTd

/// The board: buses, chips, root complex and interrupt paths around the memory of one machine. It does not know the
/// types of devices that plug in: each type builds itself onto the board (`BoardDevice`).
final class Board: PassthroughMachine, Sendable {
  let memory: GuestMemory
  let clock: any MachineClock
  let layout: BoardLayout
  let events: EventQueue
  let memoryBus = AddressBus()
  let ioBus = AddressBus()
  let rootBus = Bus(number: 0)
  let busRoutes: BusRoutes
  private let remapping: RemappingScopes
  let serial: SerialPort?
  /// Maps device memory into the guest; nil if every access of a CPU outside RAM goes through the board.
  let deviceMemory: (any DeviceMemory)?
  /// Registers the host's devices with the accelerator; nil if the accelerator does not need to know them.
  let hostDeviceFiles: (any HostDeviceRegistry)?
  let eoiListeners = EOIListeners()
  let passthrough: PassthroughObjects
  /// The character devices that devices can take over; nil if there are none.
  let chardevs: Chardevs?

  let trace: MachineTrace
  let devices: DeviceTree
  let disks = OpenDisks()
  let networks: Networks
  let buses = LiveBuses()
  let slots: HotplugSlots
  /// The windows of each port, by its address, as `placeResources` last set them. Empty before its first call.
  private let placedWindows = Mutex<[RequesterID: BridgeHeader]>([:])
  private let ioapic: IOAPICDevice
  private let pinRoutes: [PinRoute]
  private let calendar: CMOSClock
  private let firmwareConfiguration: FirmwareConfiguration
  private let resetControl: ResetControl
  private let powerManagement: PowerManagement

  /// - Parameters:
  ///   - units: empty for a board without an IOMMU.
  ///   - trace: makes the trace of a unit from its name. The name is nil if there is only one unit.
  ///   - machineTrace: records the events of devices and slots.
  ///   - serialOutput: nil for a board without a serial port.
  ///   - devices: a tree without devices.
  ///   - hotplugPorts: the addresses of the ports with a slot, in the order in which the ACPI tables number them.
  ///   - workers: makes the devices' workers; nil for threads.
  init(
    memory: GuestMemory, accelerator: any Accelerator, layout: BoardLayout, processorCount: Int,
    units: [UnitPlacement], trace: (String?) -> Trace? = { _ in nil }, machineTrace: MachineTrace = .off,
    serialOutput: (any ChardevOutput)?, chardevs: Chardevs? = nil,
    events: EventQueue, devices: DeviceTree = DeviceTree(), passthrough: PassthroughObjects = PassthroughObjects(),
    networks: Networks = Networks(),
    hotplug: HotplugWay = .acpi, hotplugPorts: [RequesterID] = [], workers: (any QueueWorkerSource)? = nil
  ) throws(UnitOptionError) {
    self.memory = memory
    self.devices = devices
    self.trace = machineTrace
    self.passthrough = passthrough
    self.networks = networks
    self.chardevs = chardevs
    clock = accelerator.clock
    deviceMemory = accelerator.deviceMemory
    hostDeviceFiles = accelerator.hostDeviceFiles
    self.layout = layout
    self.events = events
    let workers = workers ?? EventWorkerSource(doorbells: accelerator.doorbells)
    remapping = try RemappingScopes(units) { [memoryBus, ioBus, passthrough] (placement) throws(UnitOptionError) in
      let interrupts = InterruptDelivery(localInterrupts: accelerator.localInterrupts, memory: memory)
      let unit = try placement.map { (placement) throws(UnitOptionError) in
        let unit = try RemappingUnit(
          options: placement.options.unitOptions, memory: memory, faultEvent: interrupts.makeUnremappedRoute(),
          invalidationEvent: interrupts.makeUnremappedRoute(), pageRequestEvent: interrupts.makeUnremappedRoute(),
          messages: interrupts, trace: trace(units.count > 1 ? placement.name : nil), parking: ThreadParking(),
          deviceTimer: accelerator.clock.makeTimer())
        interrupts.remap(by: unit)
        _ = memoryBus.attach(unit, at: placement.registerBase, size: 0x1000)
        return PlacedUnit(placement, unit: unit) { [passthrough] in passthrough.existingBindings(of: $0) }
      }
      return RemappingScope(
        unit: unit, interrupts: interrupts,
        environment: PCIEnvironment(
          memoryBus: memoryBus, ioBus: ioBus, memory: memory,
          remapper: unit?.unit ?? DirectRemapper(memory: memory) as any DMARemapper, interrupts: interrupts,
          workers: workers, makeParking: { ThreadParking() }))
    }

    let ioapicRequester = Requester(id: BoardLayout.ioapicRequester, busMasterEnable: true)
    let pins = remapping.ioapic.interrupts
    let pinRoutes = (0..<IOAPIC.pinCount).map { pins.makePinRoute(pin: $0, requester: ioapicRequester) }
    self.pinRoutes = pinRoutes
    ioapic = IOAPICDevice(routes: pinRoutes, onEndOfInterrupt: { [eoiListeners] in eoiListeners.ended($0) })
    _ = memoryBus.attach(ioapic, at: BoardLayout.ioapic, size: IOAPICDevice.regionSize)

    _ = memoryBus.attach(
      NoDevice(), at: BoardLayout.localInterrupts.lowerBound, size: UInt64(BoardLayout.localInterrupts.count))

    busRoutes = BusRoutes(root: rootBus)
    let target = ConfigurationTarget(busRoutes)
    _ = memoryBus.attach(
      EnhancedConfigurationAccess(target: target), at: BoardLayout.configurationAccess,
      size: EnhancedConfigurationAccess.size)
    resetControl = ResetControl { _ in events.post(.reset) }
    _ = ioBus.attach(
      ConfigurationAndResetPorts(
        configuration: PortConfigurationAccess(target: target), resetControl: resetControl),
      at: BoardLayout.configurationPorts, size: ConfigurationAndResetPorts.regionSize)

    calendar = CMOSClock {
      let now = Clock.realtime()
      return ClockReading(seconds: Int64(now / 1_000_000_000), nanoseconds: Int64(now % 1_000_000_000))
    }
    _ = ioBus.attach(calendar, at: BoardLayout.clock, size: CMOSClock.regionSize)

    let count = UInt16(clamping: processorCount)
    firmwareConfiguration = FirmwareConfiguration(
      items: FirmwareConfigurationItems(
        memorySize: layout.lowMemorySize + layout.highMemorySize, processorCount: count,
        maximumProcessorCount: count))
    _ = ioBus.attach(
      firmwareConfiguration, at: BoardLayout.firmwareConfiguration, size: FirmwareConfiguration.regionSize)

    powerManagement = PowerManagement(
      clock: { [clock] in clock.now }, interrupt: ioapic.line(BoardLayout.systemControlPin),
      onPowerOff: { events.post(.shutdown) })
    _ = ioBus.attach(powerManagement, at: BoardLayout.powerManagement, size: PowerManagement.regionSize)
    slots = HotplugSlots(hotplug, ports: hotplugPorts, trace: machineTrace) { [powerManagement] in
      powerManagement.raiseGeneralPurposeEvent(ACPIHotplug.generalPurposeEvent)
    }
    if let controller = slots.controller {
      _ = ioBus.attach(controller, at: BoardLayout.hotplugController, size: ACPIHotplug.regionSize)
    }

    if let serialOutput {
      let port = SerialPort(output: serialOutput, interrupt: ioapic.line(BoardLayout.serialPin))
      _ = ioBus.attach(port, at: BoardLayout.serialPort, size: SerialPort.regionSize)
      serial = port
    } else {
      serial = nil
    }
    addBridges()
    slots.listen { $0.eject = { [weak self] in self?.eject(below: $0) } }
  }

  deinit { remapping.end() }

  /// Adds the host bridge and the ISA bridge of q35. They have no effect, but operating systems expect them.
  private func addBridges() {
    var host = FunctionDescription(vendorID: 0x8086, deviceID: 0x29c0, classCode: 0x060000)
    host.subsystemVendorID = 0x1af4
    host.subsystemID = 0x1100
    var isa = FunctionDescription(vendorID: 0x8086, deviceID: 0x2918, classCode: 0x060100)
    isa.revisionID = 2
    isa.subsystemVendorID = 0x1af4
    isa.subsystemID = 0x1100
    for (description, address) in [
      (host, MachineConfiguration.hostBridgeAddress), (isa, MachineConfiguration.isaBridgeAddress),
    ] {
      let function = Function(description, at: address, environment: environment(at: address))
      do {
        try plug(function, of: nil)
      } catch {
        preconditionFailure("an empty bus has \(address)")
      }
    }
  }

  /// Returns the environment of a function at a place: the machine services that the function uses, behind the port
  /// above it and its remapping unit, if there are any.
  func environment(at place: PCIPlace) -> PCIEnvironment {
    remapping.scope(of: place).environment.below(
      port(of: place), isMultifunction: devices.isMultifunction(at: place))
  }

  /// - Parameter address: on bus 0.
  func environment(at address: RequesterID) -> PCIEnvironment { environment(at: PCIPlace(address)) }

  /// Returns the remapping unit of a function; nil if no unit translates for it.
  func unit(at place: PCIPlace) -> RemappingUnit? { remapping.scope(of: place).unit?.unit }

  /// Returns the root port above a place; nil on bus 0.
  func port(of place: PCIPlace) -> RootPort? {
    place.port.flatMap { address in busRoutes.ports.first { $0.function.requester.id == address } }
  }

  // MARK: Devices

  /// All functions: those on bus 0, then those below its ports.
  private var functions: [Function] { rootBus.all + busRoutes.ports.flatMap(\.bus.all) }

  /// Sets up the root complex as firmware does: numbers the buses, gives BARs their addresses and ports their windows,
  /// and writes the IOAPIC pin of each function's INTx into its Interrupt Line (PCI Local Bus 3.0, section 6.2.4), for
  /// guests that do not evaluate _PRT.
  func placeResources() throws(ResourcePlacement.NoRoom) {
    var placement = ResourcePlacement(windows: layout.windows)
    try placement.place(rootBus.all, ports: busRoutes.ports)
    let windows = busRoutes.ports.map { ($0.function.requester.id, $0.header) }
    placedWindows.withLock { $0 = Dictionary(uniqueKeysWithValues: windows) }
    for function in functions where function.description.interruptPin > 0 {
      let pin = BoardLayout.pin(of: PCIPlace(function), interruptPin: function.description.interruptPin)
      function.writeConfiguration(offset: StandardOffset.interruptLine, width: .byte, value: UInt64(pin))
    }
  }

  /// Returns the windows of a port as `placeResources` last set them; nil before that.
  func placedWindows(of port: RootPort) -> BridgeHeader? { placedWindows.withLock { $0[port.function.requester.id] } }

  /// Removes every device from the board. No CPU is running.
  func removeDevices() {
    // A device below a port was added after the port, so it is removed before the port.
    revoke(devices.releaseAll().reversed())
    networks.closeAll()
    passthrough.removeAll()
  }

  /// Puts every chip and function into its reset state. No CPU is running.
  func reset() {
    for function in functions { function.reset() }
    slots.controller?.reset()
    passthrough.resetBuses()
    for unit in remapping.units { unit.unit.reset() }
    ioapic.reset()
    for route in pinRoutes { route.reset() }
    calendar.reset()
    firmwareConfiguration.reset()
    resetControl.reset()
    powerManagement.reset()
    serial?.reset()
  }

  /// Presses the power button, which asks the guest to shut down.
  func pressPowerButton() { powerManagement.pressPowerButton() }

  /// The remapping units and the functions behind them, for monitors and the log.
  var inspection: RemappingInspection {
    RemappingInspection(
      units: remapping.units,
      functions: { [rootBus, busRoutes, devices, remapping] in
        (rootBus.all + busRoutes.ports.flatMap(\.bus.all)).map { function in
          let device = devices.device(of: function)
          let address = function.requester.id
          let typeName = device?.typeName ?? Self.ownFunctions[address] ?? "PCI function"
          return (
            NamedFunction(id: device?.id?.text, typeName: typeName, address: address),
            remapping.unitIndex(of: PCIPlace(function))
          )
        }
      },
      unitIndex: { [remapping, busRoutes] address in
        if address.bus == 0 { return remapping.unitIndex(of: PCIPlace(address)) }
        let port = busRoutes.port(above: address.bus)?.function.requester.id
        return remapping.unitIndex(of: port.map { PCIPlace(address, below: $0) })
      })
  }

  private static let ownFunctions = [
    MachineConfiguration.hostBridgeAddress: "host bridge", MachineConfiguration.isaBridgeAddress: "ISA bridge",
  ]

  // MARK: Pins of the IOAPIC

  /// Adds a wire to a pin of the IOAPIC.
  func makeLine(_ pin: Int) -> any InterruptLine { ioapic.line(pin) }

  /// - Parameter observer: called at every change of a pin, with the IOAPIC's lock held.
  func observePins(_ observer: (@Sendable (_ pin: Int, _ asserted: Bool) -> Void)?) { ioapic.observePins(observer) }

  // MARK: Accesses of CPUs

  func readPort(_ port: UInt16, _ width: Int) -> UInt64 {
    guard let width = AccessWidth(rawValue: width) else { return .max }
    return ioBus.read(address: UInt64(port), width: width) ?? width.allOnes
  }

  func writePort(_ port: UInt16, _ width: Int, _ value: UInt64) {
    guard let width = AccessWidth(rawValue: width) else { return }
    ioBus.write(address: UInt64(port), width: width, value: value)
  }

  func readMemory(_ address: UInt64, _ width: Int) -> UInt64 {
    guard let width = AccessWidth(rawValue: width) else { return .max }
    return memoryBus.read(address: address, width: width) ?? width.allOnes
  }

  func writeMemory(_ address: UInt64, _ width: Int, _ value: UInt64) {
    guard let width = AccessWidth(rawValue: width) else { return }
    memoryBus.write(address: address, width: width, value: value)
  }

  /// Forwards the end of a level-triggered interrupt, which a CPU has signalled to its local APIC, to the IOAPIC.
  /// - Parameter vector: the delivered vector. With interrupt remapping it may differ from the one in the IOAPIC's
  ///   entry, so this compares it with the resolved routes, not with the entries.
  func endOfInterrupt(vector: UInt8) {
    for (pin, route) in pinRoutes.enumerated() where route.ends(vector: vector) {
      // Call the listeners first: one of them may lower the wire, and the IOAPIC samples the wire at the end of
      // interrupt.
      eoiListeners.ended(pin: pin)
      ioapic.endOfInterrupt(pin: pin)
    }
  }
}

extension PCIPlace {
  /// Returns the place of a function that has been built.
  init(_ function: Function) {
    self.init(function.requester.id, below: function.environment.upstream?.function.requester.id)
  }
}

extension Board {
  /// The addresses of the local APICs, which the accelerator implements. No device on the bus answers there, and no BAR
  /// may occupy them.
  final class NoDevice: BusDevice {
    func read(offset: UInt64, width: AccessWidth) -> UInt64 { width.allOnes }
    func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
  }
}
