import Hardware
import Synchronization

/// A PCI Express function: configuration space, BARs on the buses, MSI, MSI-X, INTx, Function Level Reset.
/// What it is beyond that is its model.
///
/// Lock order: the function's lock, then those of MSI-X, MSI, `wire`, the interrupt line and the buses. The model is
/// called with none of them held; `placing` alone is held then, so that two vCPUs that move a BAR are told apart.
/// `refuse` takes `wire` and the buses' locks, and only tries `placing`.
public final class Function: Sendable {
  private struct State {
    var space: ConfigurationSpace
    var model: (any FunctionModel)?
    /// The device's wish; what is on the wire depends on Interrupt Disable too.
    var interruptAsserted = false
  }

  private struct Wire {
    var line: (any InterruptLine)?
    var isCut = false
  }

  private struct WeakBus {
    weak var bus: Bus?
  }

  private struct Placements {
    var bars: [Placement]
    /// Devices whose visible parts may have changed when the function was refused.
    var uncovered: [any BusDevice] = []
  }

  private struct Placement {
    /// Where the model knows it.
    var base: UInt64?
    var attachment: AddressBus.Attachment?
    /// What the model knows of it.
    var parts: [Range<UInt64>] = []
  }

  public let description: FunctionDescription
  public let requester: Requester
  public let environment: DeviceEnvironment
  public let msix: MSIX?
  public let msi: MSI?
  /// Offsets of the description's capabilities, in its order.
  public let capabilityOffsets: [Int]
  /// Offsets of the description's extended capabilities, in its order.
  public let extendedCapabilityOffsets: [Int]

  private let resetSpace: ConfigurationSpace
  let expressOffset: Int?
  private let msixOffset: Int?
  private let msiOffset: Int?
  private let powerManagementOffset: Int?
  private let state: Mutex<State>
  private let placing: Mutex<Placements>
  private let wire = Mutex(Wire())
  private let bus = Mutex(WeakBus())

  /// - Parameter address: device and function; the bus number is that of the bus it is put on.
  public init(_ description: FunctionDescription, at address: RequesterID, environment: PCIEnvironment) {
    self.description = description
    let requester = Requester(id: address, upstream: environment.upstream?.function.requester)
    self.requester = requester
    self.environment = DeviceEnvironment(environment, requester: requester)

    let given = description.configuration
    var space = given?.space ?? ConfigurationSpace()
    space.define(StandardOffset.vendorID, description.vendorID)
    space.define(StandardOffset.deviceID, description.deviceID)
    space.define(StandardOffset.command, UInt16(0), writable: Command.writable.rawValue)
    // Status: parity, abort and system error bits are RW1C.
    space.define(StandardOffset.status, space.get(UInt16.self, StandardOffset.status), writeOneToClear: 0xf900)
    space.define(StandardOffset.revisionID, description.revisionID)
    space.define(StandardOffset.classCode, UInt8(truncatingIfNeeded: description.classCode))
    space.define(StandardOffset.classCode + 1, UInt16(truncatingIfNeeded: description.classCode >> 8))
    space.define(0x0c, UInt8(0), writable: 0xff)  // Cache Line Size
    space.define(StandardOffset.headerType, UInt8(environment.isMultifunction ? 0x80 : 0))
    if description.isBridge {
      BridgeHeader.define(in: &space)
    } else {
      space.define(StandardOffset.subsystemVendorID, description.subsystemVendorID)
      space.define(StandardOffset.subsystemID, description.subsystemID)
    }
    space.define(StandardOffset.interruptLine, UInt8(0), writable: 0xff)
    space.define(StandardOffset.interruptPin, description.interruptPin)
    for bar in description.baseAddressRegisters { bar.define(in: &space) }

    if let layout = description.msix {
      msix = MSIX(layout: layout, requester: requester, router: environment.interrupts)
      var body: [UInt8] = []
      body.append(littleEndian: UInt16(layout.vectorCount - 1))
      body.append(littleEndian: UInt32(layout.tableOffset) | UInt32(layout.bar))
      body.append(littleEndian: UInt32(layout.pendingOffset) | UInt32(layout.pendingBar))
      msixOffset = space.putCapability(at: given?.msixOffset, id: 0x11, body: body, writable: [0x00, 0xc0])
    } else {
      msix = nil
      msixOffset = nil
    }
    if description.msiVectorCount > 0 {
      let msi = MSI(
        vectorCount: description.msiVectorCount, requester: requester, router: environment.interrupts)
      msiOffset = space.putCapability(
        at: given?.msiOffset, id: 0x05, body: msi.capability.body, writable: msi.capability.writable)
      self.msi = msi
    } else {
      msi = nil
      msiOffset = nil
    }
    powerManagementOffset = given?.powerManagementOffset
    if let given {
      expressOffset = given.expressOffset
    } else if let type = description.expressType {
      let carriesPASID = description.extendedCapabilities.contains { $0.id == ProcessAddressSpaceControl.id }
      let body = ExpressCapability(type: type, endToEndPrefix: carriesPASID, port: description.expressPort).body
      expressOffset = space.addCapability(id: ExpressCapability.id, body: body.bytes, writable: body.writable)
    } else {
      expressOffset = nil
    }
    var offsets: [Int] = []
    for capability in description.capabilities {
      offsets.append(space.addCapability(id: capability.id, body: capability.body, writable: capability.writable))
    }
    capabilityOffsets = offsets
    extendedCapabilityOffsets = description.extendedCapabilities.map { capability in
      space.addExtendedCapability(
        id: capability.id, version: capability.version, body: capability.body, writable: capability.writable,
        writeOneToClear: capability.writeOneToClear)
    }
    resetSpace = space
    state = Mutex(State(space: space))
    placing = Mutex(
      Placements(bars: Array(repeating: Placement(), count: description.baseAddressRegisters.count)))
  }

  /// Gives the function its behaviour. The two hold each other until `revoke`.
  public func install(_ model: any FunctionModel) {
    state.withLock { $0.model = model }
  }

  /// The wire that INTx drives; set by the bus that takes the function up.
  public func connect(interruptLine: (any InterruptLine)?) {
    wire.withLock { if !$0.isCut { $0.line = interruptLine } }
  }

  var model: (any FunctionModel)? { state.withLock { $0.model } }

  // MARK: Parts of its end

  /// Called by the bus that takes the function up.
  func join(_ new: Bus) { bus.withLock { $0.bus = new } }

  func leaveBus() { bus.withLock { $0.bus }?.remove(self) }

  /// INTx goes down and stays there.
  func cutInterruptWire() {
    wire.withLock { wire in
      wire.isCut = true
      wire.line?.set(false)
      wire.line = nil
    }
  }

  /// Every register is as after a reset, no message has a route, and the model is let go.
  func dropModel() {
    state.withLock { state in
      clear(&state)
      state.model = nil
    }
  }

  /// Calls `body` as an access of the function, unless that is refused.
  private func access<Result>(_ body: () -> Result) -> Result? {
    guard let phase = environment.gate.enter() else { return nil }
    defer { environment.gate.leave(phase) }
    return body()
  }

  // MARK: Configuration accesses

  /// - Parameters:
  ///   - offset: 0 to 4095, with the width within the space.
  public func readConfiguration(offset: Int, width: AccessWidth) -> UInt64 {
    access { readConfigurationNow(offset, width) } ?? width.allOnes
  }

  /// A register as software has written it, for the function's own use: also while an access is in flight that began
  /// before the function was refused.
  public func register(at offset: Int, width: AccessWidth) -> UInt64 {
    state.withLock { $0.space.read(offset, width) }
  }

  private func readConfigurationNow(_ offset: Int, _ width: AccessWidth) -> UInt64 {
    if let answer = model?.readConfiguration(offset: offset, width: width) { return answer & width.allOnes }
    let pending = msi?.pending ?? 0
    let own = state.withLock { state in
      noteMasterAbort(&state)
      var space = state.space
      if state.interruptAsserted {
        // Interrupt Status, Status bit 3.
        space.set(StandardOffset.status, space.get(UInt16.self, StandardOffset.status) | 1 << 3)
      }
      if let msiOffset { space.set(msiOffset + 0x14, pending) }
      return space.read(offset, width)
    }
    return (model?.configurationRead(offset: offset, width: width, own: own) ?? own) & width.allOnes
  }

  public func writeConfiguration(offset: Int, width: AccessWidth, value: UInt64) {
    access { writeConfigurationNow(offset, width, value) }
  }

  private func writeConfigurationNow(_ offset: Int, _ width: AccessWidth, _ value: UInt64) {
    let touched = offset..<offset + width.rawValue
    var resets = false
    state.withLock { state in
      if !description.isBridge, let expressOffset, touched.contains(expressOffset + ExpressCapability.deviceControl + 1)
      {
        let shift = 8 * (expressOffset + ExpressCapability.deviceControl + 1 - offset)
        resets = (value >> shift)[bit: 7]
      }
      let power = powerState(in: state.space)
      noteMasterAbort(&state)
      state.space.write(offset, width, value)
      keepToPowerStates(of: &state.space, from: power)
      if touched.overlaps(StandardOffset.command..<StandardOffset.command + 2) {
        let command = Command(rawValue: state.space.get(UInt16.self, StandardOffset.command))
        let couldSend = requester.busMasterEnable
        requester.busMasterEnable = command.contains(.busMasterEnable)
        if !couldSend, requester.busMasterEnable { sendPending(state) }
        driveInterrupt(state)
      }
      if let msixOffset, touched.overlaps(msixOffset + 2..<msixOffset + 4) {
        let control = state.space.get(UInt16.self, msixOffset + 2)
        msix?.control(enabled: control[bit: 15], functionMasked: control[bit: 14])
        driveInterrupt(state)
      }
      if let msiOffset, touched.overlaps(msiOffset + 2..<msiOffset + 24) {
        msi?.update(from: state.space, at: msiOffset)
        driveInterrupt(state)
      }
    }
    if resets {
      reset()
      return
    }
    if touched.overlaps(StandardOffset.command..<StandardOffset.command + 2)
      || touched.overlaps(StandardOffset.baseAddressRegisters..<0x28)
      || touched.overlaps(StandardOffset.expansionROM..<StandardOffset.expansionROM + 4)
      || powerManagementOffset.map({ touched.contains($0 + 4) }) == true
    {
      updatePlacement()
    }
    model?.configurationWritten(offset: offset, width: width, value: value & width.allOnes)
  }

  /// Where the first extended capability with this identifier is; nil where there is none.
  public func extendedCapability(_ id: UInt16) -> Int? {
    description.extendedCapabilities.firstIndex { $0.id == id }.map { extendedCapabilityOffsets[$0] }
  }

  /// The space as it stands, for a look at several registers at one moment.
  var configuration: ConfigurationSpace { state.withLock { $0.space } }

  /// The bridge above passes other addresses on than before, or requests from below where it did not, or no more.
  /// - Parameter isRenumbered: the function's own ID is another one.
  func upstreamChanged(isRenumbered: Bool) { access { followUpstream(isRenumbered) } }

  private func followUpstream(_ isRenumbered: Bool) {
    let command = state.withLock { state in
      if isRenumbered {
        msix?.retarget()
        if let msiOffset { msi?.update(from: state.space, at: msiOffset) }
      }
      if requester.busMasterEnable { sendPending(state) }
      return state.space.get(UInt16.self, StandardOffset.command)
    }
    updatePlacement()
    model?.configurationWritten(offset: StandardOffset.command, width: .word, value: UInt64(command))
  }

  /// Requests can leave the function again.
  private func sendPending(_ state: State) {
    msix?.sendPending()
    if let msiOffset { msi?.update(from: state.space, at: msiOffset) }
  }

  /// A change of registers by the function's own hardware: status bits that it sets, for example.
  public func updateConfiguration(_ update: (inout ConfigurationSpace) -> Void) {
    state.withLock { update(&$0.space) }
  }

  /// Function Level Reset, and the function's part of a board's reset.
  public func reset() {
    access {
      state.withLock { clear(&$0) }
      updatePlacement()
      model?.reset()
    }
  }

  /// All under the function's lock: a configuration write at the same time comes before it or after it, whole.
  private func clear(_ state: inout State) {
    requester.busMasterEnable = false
    _ = requester.takeMasterAbort()
    state.space = resetSpace
    state.interruptAsserted = false
    driveInterrupt(state)
    msix?.reset()
    msi?.reset()
  }

  /// Received Master Abort, RW1C (PCI Local Bus 3.0, 6.2.3; PCI Express Base 7.5.1.1.4). Here it is set for writes too:
  /// an Express requester gets no completion for those and could not tell.
  private func noteMasterAbort(_ state: inout State) {
    guard requester.takeMasterAbort() else { return }
    state.space.set(StandardOffset.status, state.space.get(UInt16.self, StandardOffset.status) | 1 << 13)
  }

  /// What firmware does: gives a BAR its address. Decoding is enabled separately, by the command register.
  public func place(_ bar: BaseAddressRegister, at base: UInt64) {
    access {
      state.withLock { bar.place(at: base, in: &$0.space) }
      updatePlacement()
    }
  }

  /// PowerState of the power management capability: 0 for D0, 3 for D3hot.
  private func powerState(in space: ConfigurationSpace) -> UInt8 {
    powerManagementOffset.map { space.get(UInt8.self, $0 + 4) & 3 } ?? 0
  }

  /// D1 and D2 are for those that have them (D1_Support, D2_Support); else the write does nothing.
  private func keepToPowerStates(of space: inout ConfigurationSpace, from former: UInt8) {
    guard let powerManagementOffset else { return }
    let state = powerState(in: space)
    let capabilities = space.get(UInt16.self, powerManagementOffset + 2)
    guard state == 1 && !capabilities[bit: 9] || state == 2 && !capabilities[bit: 10] else { return }
    space.set(powerManagementOffset + 4, space.get(UInt8.self, powerManagementOffset + 4) & ~3 | former)
  }

  // MARK: Interrupts

  /// Asserts or withdraws INTx. On the wire only while MSI, MSI-X and Interrupt Disable are off.
  public func setINTx(_ asserted: Bool) {
    state.withLock { state in
      state.interruptAsserted = asserted
      driveInterrupt(state)
    }
  }

  private func driveInterrupt(_ state: State) {
    let command = Command(rawValue: state.space.get(UInt16.self, StandardOffset.command))
    let usesMessages = msix?.isEnabled == true || msi?.isEnabled == true
    let asserted = state.interruptAsserted && !usesMessages && !command.contains(.interruptDisable)
    wire.withLock { $0.line?.set(asserted) }
  }

  // MARK: Regions

  private func bus(of bar: BaseAddressRegister) -> AddressBus {
    bar.space == .io ? environment.ioBus : environment.memoryBus
  }

  /// Where a BAR decodes: where it is placed, if the bridge above passes that on.
  private func decodedBase(of bar: BaseAddressRegister, in space: ConfigurationSpace) -> UInt64? {
    guard let base = bar.base(in: space), let port = environment.upstream else { return bar.base(in: space) }
    return port.forwards(bar.space, base: base, size: bar.size) ? base : nil
  }

  private func updatePlacement() {
    var affected: [any BusDevice] = []
    placing.withLock { placing in
      let (space, model) = state.withLock { ($0.space, $0.model) }
      let decodes = powerState(in: space) == 0 && !environment.isRefused
      for (index, bar) in description.baseAddressRegisters.enumerated() {
        let base = decodes ? decodedBase(of: bar, in: space) : nil
        guard base != placing.bars[index].base else { continue }
        let bus = bus(of: bar)
        if placing.bars[index].base != nil {
          // The model's part goes first: what was hidden behind the BAR takes the place when the bus has it no more.
          model?.placed(bar: bar.index, at: nil, visible: [])
          if let attachment = placing.bars[index].attachment { bus.detach(attachment, affecting: &affected) }
        }
        placing.bars[index] = Placement(base: base, attachment: nil)
        if let base {
          let attachment = bus.attach(
            Region(function: self, bar: bar.index), at: base, size: bar.size, priority: .movable, affecting: &affected)
          let parts = bus.visibleParts(of: attachment)
          placing.bars[index].attachment = attachment
          placing.bars[index].parts = parts
          model?.placed(bar: bar.index, at: base, visible: parts)
        }
      }
    }
    finishPlacing()
    // Not with `placing` held: other functions take theirs.
    for device in affected { device.visiblePartsChanged() }
  }

  /// Another region of a bus came or went.
  private func updateVisibility() {
    placing.withLock { placing in
      let model = state.withLock { $0.model }
      for (index, bar) in description.baseAddressRegisters.enumerated() {
        guard let base = placing.bars[index].base, let attachment = placing.bars[index].attachment else { continue }
        let parts = bus(of: bar).visibleParts(of: attachment)
        guard parts != placing.bars[index].parts else { continue }
        placing.bars[index].parts = parts
        model?.placed(bar: bar.index, at: base, visible: parts)
      }
    }
    finishPlacing()
  }

  /// After `placing` was held.
  private func finishPlacing() {
    // Either `refuse` finds the lock free after this, or this finds the function refused.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    if environment.isRefused { detachRegions() }
  }

  /// With the function refused: its BARs leave the buses. Where `placing` is taken, its holder comes here next. The model
  /// and what was hidden behind the BARs hear of it by `withdrawRegions`, as that may take host calls.
  func detachRegions() {
    _ = placing.withLockIfAvailable { placing in
      for (index, bar) in description.baseAddressRegisters.enumerated() {
        guard let attachment = placing.bars[index].attachment else { continue }
        bus(of: bar).detach(attachment, affecting: &placing.uncovered)
        placing.bars[index].attachment = nil
      }
    }
  }

  /// With the function refused and nothing of it in flight: the model has no BAR in place any more.
  func withdrawRegions() {
    updatePlacement()
    let uncovered = placing.withLock { placing in
      defer { placing.uncovered = [] }
      return placing.uncovered
    }
    for device in uncovered { device.visiblePartsChanged() }
  }

  /// A BAR as the bus sees it.
  private final class Region: BaseAddressRegion {
    let function: Function
    let bar: Int

    init(function: Function, bar: Int) {
      self.function = function
      self.bar = bar
    }

    func read(offset: UInt64, width: AccessWidth) -> UInt64 {
      function.access {
        if let msix = function.msix, let value = msix.read(bar: bar, offset: offset, width: width) { return value }
        return function.model?.readRegion(bar: bar, offset: offset, width: width) ?? width.allOnes
      } ?? width.allOnes
    }

    func write(offset: UInt64, width: AccessWidth, value: UInt64) {
      function.access {
        if let msix = function.msix, msix.write(bar: bar, offset: offset, width: width, value: value) { return }
        function.model?.writeRegion(bar: bar, offset: offset, width: width, value: value)
      }
    }

    func visiblePartsChanged() { function.updateVisibility() }
  }
}

/// What a bus has attached for a BAR.
public protocol BaseAddressRegion: BusDevice {
  var function: Function { get }
  var bar: Int { get }
}
