import Devices
import Hardware
import Linux
import PCI
import Synchronization
import VTd

/// The board: buses, chips, root complex and interrupt paths, around one machine's memory. It knows no kind
/// of device that plugs in; those are built onto it (`BoardDevice`).
final class Board: Sendable {
  let memory: GuestMemory
  let clock: any MachineClock
  let layout: BoardLayout
  let events: EventQueue
  let memoryBus = AddressBus()
  let ioBus = AddressBus()
  let rootBus = Bus(number: 0)
  private let remapping: RemappingDomains
  let serial: SerialPort?
  /// nil where CPUs reach RAM alone without the board.
  let deviceMemory: (any DeviceMemory)?
  /// nil where nobody need know of the host's devices.
  let hostDeviceFiles: (any HostDeviceRegistry)?
  let interruptEnds = InterruptEnds()
  let passthrough: PassthroughObjects

  /// What has been plugged in, in that order, and how each is taken off.
  private let removals = Mutex<[(function: Function, remove: @Sendable () -> Void)]>([])
  private let ioapic: IOAPICDevice
  private let pinRoutes: [PinRoute]
  private let calendar: CMOSClock
  private let firmwareConfiguration: FirmwareConfiguration
  private let resetControl: ResetControl
  private let powerManagement: PowerManagement

  /// - Parameters:
  ///   - units: empty for a board without an IOMMU.
  ///   - trace: makes what takes a unit's events; the name is nil where there is one unit.
  ///   - serialOutput: nil for a board without a serial port.
  init(
    memory: GuestMemory, accelerator: any Accelerator, layout: BoardLayout, processorCount: Int,
    units: [UnitPlacement], trace: (String?) -> Trace? = { _ in nil }, serialOutput: (any CharacterOutput)?,
    events: EventQueue, passthrough: PassthroughObjects = PassthroughObjects()
  ) throws(UnitOptionError) {
    self.memory = memory
    self.passthrough = passthrough
    clock = accelerator.clock
    deviceMemory = accelerator.deviceMemory
    hostDeviceFiles = accelerator.hostDeviceFiles
    self.layout = layout
    self.events = events
    let workers = EventWorkerSource(doorbells: accelerator.doorbells)
    remapping = try RemappingDomains(units) { [memoryBus, ioBus, passthrough] (placement) throws(UnitOptionError) in
      let interrupts = InterruptDelivery(localInterrupts: accelerator.localInterrupts, memory: memory)
      let unit = try placement.map { (placement) throws(UnitOptionError) in
        let unit = try TranslationUnit(
          options: placement.options.unitOptions, memory: memory, faultEvent: interrupts.makeUnremappedRoute(),
          invalidationEvent: interrupts.makeUnremappedRoute(), pageRequestEvent: interrupts.makeUnremappedRoute(),
          messages: interrupts, trace: trace(units.count > 1 ? placement.name : nil), parking: ThreadParking(),
          deviceTimer: try? accelerator.clock.makeTimer())
        interrupts.remap(by: unit)
        _ = memoryBus.attach(unit, at: placement.registerBase, size: 0x1000)
        return RemappingUnit(placement, unit: unit) { [passthrough] in passthrough.existingBindings(of: $0) }
      }
      return RemappingDomain(
        unit: unit, interrupts: interrupts,
        environment: PCIEnvironment(
          memoryBus: memoryBus, ioBus: ioBus, memory: memory,
          remapper: unit?.unit ?? DirectRemapper(memory: memory) as any DMARemapper, interrupts: interrupts,
          workers: workers))
    }

    let ioapicRequester = Requester(id: BoardLayout.ioapicRequester, busMasterEnable: true)
    let pins = remapping.ioapic.interrupts
    let pinRoutes = (0..<IOAPIC.pinCount).map { pins.makePinRoute(pin: $0, requester: ioapicRequester) }
    self.pinRoutes = pinRoutes
    ioapic = IOAPICDevice(routes: pinRoutes, onEndOfInterrupt: { [interruptEnds] in interruptEnds.ended($0) })
    _ = memoryBus.attach(ioapic, at: BoardLayout.ioapic, size: IOAPICDevice.regionSize)

    _ = memoryBus.attach(
      NoDevice(), at: BoardLayout.localInterrupts.lowerBound, size: UInt64(BoardLayout.localInterrupts.count))

    let target = ConfigurationTarget(root: rootBus)
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

    if let serialOutput {
      let port = SerialPort(output: serialOutput, interrupt: ioapic.line(BoardLayout.serialPin))
      _ = ioBus.attach(port, at: BoardLayout.serialPort, size: SerialPort.regionSize)
      serial = port
    } else {
      serial = nil
    }
    addBridges()
  }

  deinit { remapping.end() }

  /// The two functions that every q35 has: they do nothing, but an operating system looks for them.
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
      plug(function) { function.remove() }
    }
  }

  /// The ways out of a function at an address: through the unit that has it, if any.
  func environment(at address: RequesterID) -> PCIEnvironment { remapping.domain(of: address).environment }

  /// The unit that a function at an address is behind; nil for none.
  func unit(at address: RequesterID) -> TranslationUnit? { remapping.domain(of: address).unit?.unit }

  /// Puts a function on bus 0 and wires its INTx. Its address was found free when the configuration was checked.
  /// - Parameter removal: takes the device off the board and ends its workers.
  func plug(_ function: Function, removal: @escaping @Sendable () -> Void) {
    removals.withLock { $0.append((function, removal)) }
    let pin = function.description.interruptPin
    if pin > 0 {
      function.connect(
        interruptLine: ioapic.line(BoardLayout.pin(of: function.requester.id, interruptPin: pin)))
    }
    try? rootBus.add(function)
  }

  /// Takes a function off the board at once, as if it were pulled out: what the guest asks of it from now on answers all
  /// ones, and nothing comes from it any more. Accesses in flight end as they will.
  /// - Returns: false where there is none at the address.
  @discardableResult
  func unplug(_ address: RequesterID) -> Bool {
    let removal = removals.withLock { removals -> (function: Function, remove: @Sendable () -> Void)? in
      guard let index = removals.firstIndex(where: { $0.function.requester.id == address }) else { return nil }
      return removals.remove(at: index)
    }
    guard let removal else { return false }
    rootBus.remove(removal.function)
    removal.remove()
    return true
  }

  /// Does what firmware does for the root complex: gives BARs their addresses, and writes into each function's Interrupt
  /// Line where its INTx is wired to (PCI Local Bus 3.0, 6.2.4), for guests that do not ask _PRT.
  func placeResources() throws(ResourcePlacement.NoRoom) {
    let functions = rootBus.all
    var placement = ResourcePlacement(windows: layout.windows)
    try placement.place(functions)
    for function in functions where function.description.interruptPin > 0 {
      let pin = BoardLayout.pin(of: function.requester.id, interruptPin: function.description.interruptPin)
      function.writeConfiguration(offset: StandardOffset.interruptLine, width: .byte, value: UInt64(pin))
    }
  }

  /// Takes every device off the board. No CPU is running.
  func removeDevices() {
    let all = removals.withLock { removals in
      defer { removals = [] }
      return removals
    }
    for removal in all {
      rootBus.remove(removal.function)
      removal.remove()
    }
    passthrough.removeAll()
  }

  /// Puts every chip and function into its reset state. No CPU is running.
  func reset() {
    for function in rootBus.all { function.reset() }
    passthrough.resetBuses()
    for unit in remapping.units { unit.unit.reset() }
    ioapic.reset()
    calendar.reset()
    firmwareConfiguration.reset()
    resetControl.reset()
    powerManagement.reset()
    serial?.reset()
  }

  /// As a person presses it: the guest is asked to shut down.
  func pressPowerButton() { powerManagement.pressPowerButton() }

  /// The units, and the functions by the names that the configuration gives them.
  func inspection(of configuration: MachineConfiguration) -> RemappingInspection {
    var names: [RequesterID: NamedFunction] = [:]
    for (device, address) in zip(configuration.devices, (try? configuration.devicePlacement()) ?? []) {
      guard let address else { continue }
      names[address] = NamedFunction(id: device.id?.text, kindName: type(of: device).kindName, address: address)
    }
    for (address, name) in [
      (MachineConfiguration.hostBridgeAddress, "host bridge"), (MachineConfiguration.isaBridgeAddress, "ISA bridge"),
    ] {
      names[address] = NamedFunction(id: nil, kindName: name, address: address)
    }
    return RemappingInspection(
      units: remapping.units,
      functions: { [rootBus, names] in
        rootBus.all.map(\.requester.id).map {
          names[$0] ?? NamedFunction(id: nil, kindName: "PCI function", address: $0)
        }
      },
      unitIndex: { [remapping] in remapping.unitIndex(of: $0) })
  }

  // MARK: Pins of the IOAPIC

  /// A new wire to a pin.
  func makeLine(_ pin: Int) -> any InterruptLine { ioapic.line(pin) }

  /// - Parameter observer: told of every change of a pin, with the chip's lock held.
  func observePins(_ observer: (@Sendable (_ pin: Int, _ asserted: Bool) -> Void)?) { ioapic.observePins(observer) }

  // MARK: What a CPU's accesses meet

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

  /// A local APIC ended a level-triggered interrupt. The vector is the one delivered, which a remapped entry of the
  /// IOAPIC need not have; so the routes are asked, not the entries.
  func endOfInterrupt(vector: UInt8) {
    for (pin, route) in pinRoutes.enumerated() where route.ends(vector: vector) {
      // Before the pin is looked at again: a wire that goes down now would be seen as still up.
      interruptEnds.ended(pin: pin)
      ioapic.endOfInterrupt(pin: pin)
    }
  }
}

/// A part of the address space that nothing on the bus answers, and that no BAR is to be seen in: the accelerator has the
/// local APICs there.
private final class NoDevice: BusDevice {
  func read(offset: UInt64, width: AccessWidth) -> UInt64 { width.allOnes }
  func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
}
