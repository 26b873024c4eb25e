import Hardware
import Linux
import PCI
import Synchronization
import VFIO

/// A function of the host on the guest's bus. Its BARs are memory of the guest's CPUs where VFIO maps them, and
/// trapped where not: the MSI-X table and pending bits always are. Decoding stays enabled on the device itself, whose
/// mappings would fault otherwise; the guest's own decode bits say where its CPUs find them. Out of D0 they find them
/// nowhere, for the same reason.
///
/// What holds it: the board's bus, by `Function`, and whoever removes it. An access that was in flight meanwhile may hold
/// it a little longer; the last one closes the device's file, and the host has its device back.
///
/// Lock order: `placed`, then `Function`'s and the accelerator's and the address space's; `state` is a leaf.
final class VFIOPCI: FunctionModel {
  let function: Function
  let device: VFIODevice
  let space: HostConfigurationSpace
  private let configuration: VFIORegion
  private let regions: [Int: VFIORegion]
  private let mappings: [Int: [RegionMapping]]
  private let rom: ExpansionROM?
  private let interrupts: PassthroughInterrupts
  private let events: PassthroughEvents
  let surroundings: Surroundings
  private let placed = Mutex(Placed())
  private let state = Mutex(State())

  /// What of the machine the function reaches, beside its bus.
  struct Surroundings: Sendable {
    /// nil where CPUs reach RAM alone without the board.
    var deviceMemory: (any DeviceMemory)?
    /// For other devices' requests to its BARs, and for a reset that it shares with others.
    var memory: PassthroughMemory?
    /// Told of the device's file already; held as long as the function.
    var registration: HostDeviceRegistration?
    /// Its place in its IOMMU group, which it gives up when it is removed.
    var group: HostGroup.Member?
    /// As the options name it.
    var name = ""
    /// Other functions that it may share a bus with are in use.
    var guestRuns = false
    /// What a person is to know; each is told once.
    var tell: @Sendable (PassthroughNotice.Kind) -> Void = { _ in }
  }

  /// BARs where the guest has them, and the device's power state, which must be D0 meanwhile.
  private struct Placed {
    /// Of the CPUs' memory and of the devices', by BAR.
    var slots: [Int: [any AnyObject & Sendable]] = [:]
    /// PowerState as the device has it: 0 for D0.
    var power: UInt8 = 0
  }

  private struct State {
    /// Bits of the device's command register.
    var command: UInt16 = 0
    /// Bus Master Enable stays off: the function is being removed.
    var requestsEnded = false
    var interruptAsserted = false
    var pageRequests: PageRequestInterface?
    var awaitsBusReset = false
    var told: Set<PassthroughNotice.Kind> = []
  }

  private static let decoding: Command = [.memorySpaceEnable, .ioSpaceEnable]
  private static let passed: Command = [.busMasterEnable, .parityErrorResponse, .serrEnable]

  /// - Parameters:
  ///   - device: attached to where its requests are to go.
  ///   - address: on the guest's bus.
  ///   - services: what the guest is to see of its translation services.
  init(
    _ device: VFIODevice, environment: PCIEnvironment, surroundings: Surroundings = Surroundings(),
    rom source: ExpansionROM.Source = .device, address: RequesterID, services: TranslationServices = []
  ) throws(PassthroughError.Problem) {
    self.device = device
    self.surroundings = surroundings
    do {
      let configuration = try device.region(7)
      self.configuration = configuration
      let bytes = try Self.bytes(of: configuration, device)
      space = HostConfigurationSpace(
        bytes, type: environment.endpointType, services: services, offersReset: device.hasReset)
      let bars = try Self.bars(bytes, device)
      regions = bars.regions
      mappings = Self.mappings(of: bars.regions, space.msix, device)
      rom = try ExpansionROM(source, of: device)
      let romRegister = rom.map {
        BaseAddressRegister(index: BaseAddressRegister.expansionROMIndex, space: .expansionROM, size: $0.size)
      }
      events = try PassthroughEvents()
      interrupts = PassthroughInterrupts(
        device, inner: environment.interrupts, msixCount: space.msix?.vectorCount ?? 0,
        intx: space.interruptPin > 0 ? events.interrupt : nil,
        tell: { surroundings.tell(.interruptsRefused($0)) })
      function = Function(
        Self.description(space, bars.registers + (romRegister.map { [$0] } ?? [])), at: address,
        environment: environment.routing(by: interrupts))
    } catch {
      throw .registers(error)
    }
    guard interrupts.isPossible else { throw .accelerator }
    function.install(self)
    reset(isFirst: true)
  }

  // MARK: Life

  /// From now on the device's interrupts, errors and requests are heard, and a reset of others reckons with it.
  func start(_ handler: @escaping @Sendable (PassthroughEvents.Event) -> Void) throws(SystemError) {
    function.environment.onStop { [events] in events.stop() }
    try events.start(of: device, name: "vfio \(function.requester.id)") { [weak self] event in
      if event == .interrupt { self?.interruptCame() } else { handler(event) }
    }
    surroundings.memory?.peers.add(self)
    surroundings.memory?.tellPeerProblem()
  }

  /// Ends the device's requests for good, while its tables and their invalidations still hold: an access in flight on
  /// another CPU cannot enable bus mastering again, nor can a reset with others. The read comes back behind what the
  /// device posted before (PCI Express Base 2.4.1).
  func endRequests() {
    surroundings.memory?.peers.remove(self)
    state.withLock { $0.requestsEnded = true }
    write(command: Self.decoding.rawValue)
    _ = device.read(configuration, offset: UInt64(StandardOffset.command), width: 2)
  }

  /// Answers the device's page requests and detaches it, before what it reached is unmapped: the host's IOMMU refuses
  /// whatever it still sends. Not by the device's end alone, which others may put off.
  func detach() {
    let ended = state.withLock { state in
      defer { state.pageRequests = nil }
      return state.pageRequests
    }
    // Before the kernel answers by itself, and gives cookies out again.
    ended?.stop()
    try? device.detach()
    surroundings.group?.leave()
  }

  /// Stops page requests and interrupts. The device's file closes with its last owner.
  func released() {
    detach()
    interrupts.end()
  }

  // MARK: Reset

  func reset() { reset(isFirst: false) }

  /// What a bus reset alone brings back is put off where others share that, until all of them are quiet: with the
  /// machine's next reset.
  /// - Parameter isFirst: of a function that the guest does not have yet. Before the machine starts, what shares its bus
  ///   may be yet to come; while it runs, the guest uses what shares its bus.
  private func reset(isFirst: Bool) {
    quiesce()
    var waits = false
    do throws(ResetProblem) {
      try resetDevice()
    } catch {
      switch error {
      case .isShared(let others):
        waits = true
        if isFirst, surroundings.guestRuns { tell(.notResetBeside(others.map(\.surroundings.name))) }
      case .failed(let error):
        if isFirst, !surroundings.guestRuns { waits = true } else { tell(.notReset(error)) }
      }
    }
    state.withLock { $0.awaitsBusReset = waits }
    settle()
  }

  func tell(_ kind: PassthroughNotice.Kind) {
    if state.withLock({ $0.told.insert(kind).inserted }) { surroundings.tell(kind) }
  }

  /// Whether a reset of its bus is still owed to it.
  var awaitsBusReset: Bool { state.withLock { $0.awaitsBusReset } }

  /// Its bus is reset: with it quiet before, and settled after.
  func finishBusReset() { state.withLock { $0.awaitsBusReset = false } }

  /// No interrupt, no request of its own, full power.
  func quiesce() {
    pageRequests?.reset()
    interrupts.reset()
    placed.withLock { setPower(0, &$0) }
    // No request may leave the device between its reset and the guest's next driver.
    write(command: Self.decoding.rawValue)
  }

  /// As the guest is to find it after a reset.
  func settle() {
    state.withLock { state in
      state.command = 0
      state.interruptAsserted = false
    }
    write(command: Self.decoding.rawValue)
    interrupts.choose(space.interruptPin > 0 ? .intx : .none)
  }

  // MARK: Regions

  func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 {
    if bar == BaseAddressRegister.expansionROMIndex { return rom?.read(offset: offset, width: width) ?? width.allOnes }
    return regions[bar].flatMap { device.read($0, offset: offset, width: width.rawValue) } ?? width.allOnes
  }

  func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) {
    if let region = regions[bar] { device.write(region, offset: offset, width: width.rawValue, value: value) }
  }

  func placed(bar: Int, at base: UInt64?, visible parts: [Range<UInt64>]) {
    placed.withLock { placed in
      // The old place first: the slots of the two may overlap.
      placed.slots[bar] = nil
      guard let base, base & 0xfff == 0, let region = regions[bar], let mappings = mappings[bar] else { return }
      // The device answers in D0 alone, and an access of a CPU that it does not answer would end the machine.
      setPower(0, &placed)
      var made: [any AnyObject & Sendable] = []
      for mapping in mappings {
        for area in Self.pages(of: mapping.area, within: parts) {
          let address = base &+ area.offset
          if let slot = surroundings.deviceMemory?.map(
            address, size: area.size, hostAddress: mapping.hostAddress + (area.offset - mapping.area.offset))
          {
            made.append(slot)
          }
          if let peer = surroundings.memory?.map(region, area, of: device, at: address) { made.append(peer) }
        }
      }
      placed.slots[bar] = made
    }
    surroundings.memory?.tellPeerProblem()
  }

  // MARK: Page requests

  /// Where the guest sees the capability; nil where it is not shown.
  var pageRequestOffset: Int? { space.translationServices[PageRequestControl.id] }

  /// Whether the device has page requests, shown or not.
  var hasPageRequests: Bool { space.hasPageRequests }

  /// What the guest's accesses to the capability mean; nil: nothing.
  var pageRequests: PageRequestInterface? {
    get { state.withLock { $0.pageRequests } }
    set { state.withLock { $0.pageRequests = newValue } }
  }

  // MARK: Configuration space

  func configurationRead(offset: Int, width: AccessWidth, own: UInt64) -> UInt64 {
    var mask: UInt64 = 0
    for index in 0..<width.rawValue { mask |= UInt64(space.direct[offset + index]) << (8 * index) }
    guard mask != 0 else {
      return pageRequests?.configurationRead(offset..<offset + width.rawValue, own: own) ?? own
    }
    let theirs = device.read(configuration, offset: UInt64(offset), width: width.rawValue) ?? width.allOnes
    return own & ~mask | theirs & mask
  }

  func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    let touched = offset..<offset + width.rawValue
    if touched.overlaps(StandardOffset.command..<StandardOffset.command + 2) {
      var own = Command(
        rawValue: UInt16(truncatingIfNeeded: function.register(at: StandardOffset.command, width: .word)))
      // A bridge above that passes no requests on is the guest's: the device must make none.
      if !function.requester.busMasterEnable { own.remove(.busMasterEnable) }
      write(command: own.intersection(Self.passed).union(Self.decoding).rawValue)
    }
    if let control = powerControl, touched.contains(control) {
      placed.withLock { placed in
        let power = UInt8(truncatingIfNeeded: function.register(at: control, width: .byte)) & 3
        // With BARs in place it is another CPU that wrote this, which comes here when it has taken them away.
        guard power == 0 || placed.slots.values.allSatisfy(\.isEmpty) else { return }
        setPower(power, &placed)
      }
    }
    forward(touched, value)
    pageRequests?.configurationWritten(touched, value: value)
    if function.msix?.isEnabled == true {
      interrupts.choose(.msix)
    } else if function.msi?.isEnabled == true {
      interrupts.choose(.msi)
    } else {
      interrupts.choose(space.interruptPin > 0 ? .intx : .none)
    }
  }

  /// Bytes that are the device's, with one access where all of them are.
  private func forward(_ touched: Range<Int>, _ value: UInt64) {
    if touched.allSatisfy({ space.direct[$0] != 0 }) {
      device.write(configuration, offset: UInt64(touched.lowerBound), width: touched.count, value: value)
      return
    }
    for at in touched where space.direct[at] != 0 {
      let byte = value >> UInt64(8 * (at - touched.lowerBound)) & 0xff
      device.write(configuration, offset: UInt64(at), width: 1, value: byte)
    }
  }

  private func write(command: UInt16) {
    state.withLock { state in
      let command = state.requestsEnded ? command & ~Command.busMasterEnable.rawValue : command
      guard state.command != command else { return }
      state.command = command
      device.write(configuration, offset: UInt64(StandardOffset.command), width: 2, value: UInt64(command))
    }
  }

  /// The byte of PMCSR with PowerState.
  private var powerControl: Int? { space.given.powerManagementOffset.map { $0 + 4 } }

  /// Takes the device to a power state: VFIO waits until it is there, and puts back what a soft reset on the way took.
  private func setPower(_ power: UInt8, _ placed: inout Placed) {
    guard let powerControl, placed.power != power else { return }
    placed.power = power
    device.write(configuration, offset: UInt64(powerControl), width: 1, value: UInt64(power))
  }

  // MARK: INTx

  private func interruptCame() {
    state.withLock { $0.interruptAsserted = true }
    function.setINTx(true)
  }

  /// The guest ended a level-triggered interrupt of the pin that INTx is wired to: it has seen to the device, or did
  /// not; then the device signals again.
  func interruptEnded() {
    let wasAsserted = state.withLock { state in
      defer { state.interruptAsserted = false }
      return state.interruptAsserted
    }
    guard wasAsserted else { return }
    function.setINTx(false)
    events.unmask()
  }
}
