import Hardware
import Linux
import PCI
import Synchronization
import VFIO

/// A function of the host on the guest's bus. The guest's CPUs access the parts of its BARs that VFIO maps directly.
/// Other accesses are trapped, always those to the MSI-X table and the pending bits.
///
/// The device itself always decodes its BARs, because an access to a mapping would fault otherwise. The guest's decode
/// bits only determine the addresses at which its CPUs see the BARs. Outside D0 the device does not decode, so the CPUs
/// see no BARs.
///
/// The board's bus holds this object through `Function`, and so does the code that removes it. An access in flight may
/// hold it a little longer. The last owner closes the device's file, which returns the device to the host.
///
/// Lock order: `placed`, then those of `Function`, of the accelerator and of the address space; code that holds `state`
/// takes no other lock.
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

  /// Machine services that the function uses, except its bus.
  struct Surroundings: Sendable {
    /// The CPUs' memory, in which BARs are mapped; nil if the accelerator maps only RAM.
    var deviceMemory: (any DeviceMemory)?
    /// The memory of the function's iommufd object, for other devices' requests to the BARs and for shared resets.
    var memory: PassthroughMemory?
    /// The registration of the device's file, held as long as the function exists.
    var registration: HostDeviceRegistration?
    /// The membership in the IOMMU group, which ends when the function is removed.
    var group: HostGroup.Member?
    /// The device's name in the options.
    var name = ""
    /// Whether the guest already uses the functions that may share a bus with this function.
    var guestRuns = false
    /// Reports a notice to the user. Called once for each notice.
    var report: @Sendable (PassthroughNotice.Reason) -> Void = { _ in }
  }

  /// The BARs where the guest has placed them, and the device's power state, which is D0 while a BAR is mapped.
  private struct Placed {
    /// The mappings in the CPUs' memory and in the devices', by BAR.
    var slots: [Int: [any AnyObject & Sendable]] = [:]
    /// The device's PowerState: 0 for D0.
    var power: UInt8 = 0
  }

  private struct State {
    /// Bits of the device's command register.
    var command: UInt16 = 0
    /// Whether Bus Master Enable stays clear, because the function is being removed.
    var requestsEnded = false
    var interruptAsserted = false
    var pageRequests: PageRequestInterface?
    var onPASIDControl: (@Sendable () -> Void)?
    var awaitsBusReset = false
    var reported: Set<PassthroughNotice.Reason> = []
  }

  private static let decoding: Command = [.memorySpaceEnable, .ioSpaceEnable]
  private static let passed: Command = [.busMasterEnable, .parityErrorResponse, .serrEnable]

  /// - Parameters:
  ///   - device: already attached to the guest's memory.
  ///   - address: the address on the guest's bus.
  ///   - services: the translation services that the guest sees.
  ///   - pasids: the PASIDs that the guest sees; nil for none.
  ///   - needsATS: whether the device is refused without ATS.
  init(
    _ device: VFIODevice, environment: PCIEnvironment, surroundings: Surroundings = Surroundings(),
    rom source: ExpansionROM.Source = .device, address: RequesterID, services: TranslationServices = [],
    pasids: OfferedPASIDs? = nil, needsATS: Bool = false
  ) throws(PassthroughError.Problem) {
    self.device = device
    self.surroundings = surroundings
    do {
      let configuration = try device.region(7)
      self.configuration = configuration
      let bytes = try Self.bytes(of: configuration, device)
      space = HostConfigurationSpace(
        bytes, type: environment.endpointType, services: services, pasids: pasids, offersReset: device.hasReset)
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
        report: { surroundings.report(.interruptsRefused($0)) })
      function = Function(
        Self.description(space, bars.registers + (romRegister.map { [$0] } ?? [])), at: address,
        environment: environment.routing(by: interrupts))
    } catch {
      throw .registers(error)
    }
    guard interrupts.isPossible else { throw .accelerator }
    if needsATS, space.translationServices[AddressTranslationControl.id] == nil { throw .addressTranslation(.device) }
    if case .taken(let offset) = space.pasidProblem { throw .pasidOffset(offset) }
    function.install(self)
    reset(isFirst: true)
  }

  // MARK: Start and end

  /// Starts to handle the device's interrupts, errors and requests, and includes the function in shared bus resets.
  /// - Parameter handler: called for errors and requests, on the thread that waits for them.
  func start(_ handler: @escaping @Sendable (PassthroughEvent) -> Void) throws(SystemError) {
    function.environment.onStop { [events] in events.stop() }
    try events.start(
      of: device, name: "vfio \(function.requester.id)", onInterrupt: { [weak self] in self?.interruptCame() },
      onEvent: handler)
    surroundings.memory?.peers.add(self)
    surroundings.memory?.reportPeerProblem()
  }

  /// Ends the device's requests for good, while its tables and their invalidations are still in force. Neither an
  /// access in flight on another CPU nor a shared reset can set Bus Master Enable again. The read returns after the
  /// device's earlier posted writes (PCI Express Base 2.4.1).
  func endRequests() {
    surroundings.memory?.peers.remove(self)
    state.withLock { $0.requestsEnded = true }
    write(command: Self.decoding.rawValue)
    _ = device.read(configuration, offset: UInt64(StandardOffset.command), width: 2)
  }

  /// Answers the device's page requests and detaches the device, before the memory that it reached is unmapped. The
  /// host's IOMMU refuses its later requests. This does not wait for the end of the device object, which other owners
  /// can delay.
  func detach() {
    let ended = state.withLock { state in
      defer { state.pageRequests = nil }
      return state.pageRequests
    }
    // Answer the page requests before the kernel answers them itself and reuses their cookies.
    ended?.stop()
    try? device.detachAll()
    surroundings.group?.leave()
  }

  /// Stops page requests and interrupts. The device's file closes with its last owner.
  func released() {
    detach()
    interrupts.end()
  }

  // MARK: Reset

  func reset() { reset(isFirst: false) }

  /// Resets the function. If only a bus reset is possible and others share the bus, the reset waits for the machine's
  /// next reset, when all of them are quiet.
  /// - Parameter isFirst: whether the guest does not have the function yet. Before the machine starts, functions on the
  ///   same bus may still be added; on a running machine the guest uses them.
  private func reset(isFirst: Bool) {
    quiesce()
    var waits = false
    do throws(ResetProblem) {
      try resetDevice()
    } catch {
      switch error {
      case .isShared(let others):
        waits = true
        if isFirst, surroundings.guestRuns { report(.notResetBeside(others.map(\.surroundings.name))) }
      case .failed(let error):
        if isFirst, !surroundings.guestRuns { waits = true } else { report(.notReset(error)) }
      }
    }
    state.withLock { $0.awaitsBusReset = waits }
    settle()
  }

  func report(_ reason: PassthroughNotice.Reason) {
    if state.withLock({ $0.reported.insert(reason).inserted }) { surroundings.report(reason) }
  }

  /// Whether the function waits for a reset of its bus.
  var awaitsBusReset: Bool { state.withLock { $0.awaitsBusReset } }

  /// Records that the function's bus was reset. The caller calls `quiesce` before and `settle` after the reset.
  func finishBusReset() { state.withLock { $0.awaitsBusReset = false } }

  /// Stops the device's interrupts and requests, and brings the device to full power.
  func quiesce() {
    pageRequests?.reset()
    interrupts.reset()
    placed.withLock { setPower(0, &$0) }
    // No request may leave the device between its reset and the guest's next driver.
    write(command: Self.decoding.rawValue)
    onPASIDControl?()
  }

  /// Brings the function to the state that the guest expects after a reset.
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
      // Remove the old mappings first: the old and the new slots may overlap.
      placed.slots[bar] = nil
      guard let base, base & 0xfff == 0, let region = regions[bar], let mappings = mappings[bar] else { return }
      // The device answers only in D0, and an access of a CPU without an answer would end the machine.
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
    surroundings.memory?.reportPeerProblem()
  }

  // MARK: Page requests

  /// The offset of the capability; nil if the guest does not see it.
  var pageRequestOffset: Int? { space.translationServices[PageRequestControl.id] }

  /// Whether the device has page requests, even if the guest does not see them.
  var hasPageRequests: Bool { space.hasPageRequests }

  /// Handles the guest's accesses to the capability; nil if they have no effect.
  var pageRequests: PageRequestInterface? {
    get { state.withLock { $0.pageRequests } }
    set { state.withLock { $0.pageRequests = newValue } }
  }

  // MARK: PASIDs

  /// Whether the guest has set PASID Enable. A reset clears it.
  var isPASIDEnabled: Bool {
    guard let offset = space.pasidOffset else { return false }
    let control = function.register(at: offset + ProcessAddressSpaceControl.offset, width: .word)
    return ProcessAddressSpaceControl(rawValue: UInt16(truncatingIfNeeded: control)).contains(.enable)
  }

  /// Called after the guest has written PASID Control, and for a reset after the device's requests have ended and before
  /// it is reset. Called without a lock. May block on the host.
  var onPASIDControl: (@Sendable () -> Void)? {
    get { state.withLock { $0.onPASIDControl } }
    set { state.withLock { $0.onPASIDControl = newValue } }
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
      // If a bridge above forwards no requests, the device itself must send none, because only the guest has this
      // bridge.
      if !function.requester.busMasterEnable { own.remove(.busMasterEnable) }
      write(command: own.intersection(Self.passed).union(Self.decoding).rawValue)
    }
    if let control = powerControl, touched.contains(control) {
      placed.withLock { placed in
        let power = UInt8(truncatingIfNeeded: function.register(at: control, width: .byte)) & 3
        // If BARs are still mapped, another CPU wrote this state, and gets here after it has removed the mappings.
        guard power == 0 || placed.slots.values.allSatisfy(\.isEmpty) else { return }
        setPower(power, &placed)
      }
    }
    if let offset = space.pasidOffset, touched.contains(offset + ProcessAddressSpaceControl.offset) {
      onPASIDControl?()
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

  /// Writes those of the bytes that belong to the device; with one access if all of them do.
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

  /// Sets the device's power state. VFIO waits for the transition, and restores registers that a soft reset cleared.
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

  /// Handles the guest's EOI of a level-triggered interrupt of the pin that INTx is wired to. If the guest has not
  /// served the device, the device signals again.
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
