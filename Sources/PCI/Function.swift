import Hardware
import Synchronization

/// A PCI Express function: configuration space, BARs on the buses, MSI, MSI-X, INTx and Function Level Reset. Its model
/// implements the rest of the device.
///
/// Lock order: `placing`, then the function's lock, then those of MSI-X, MSI, `wire`, the interrupt line and the buses.
/// During a call into the model, at most `placing` is held, which serializes vCPUs that move a BAR. `refuse` takes
/// `wire` and the buses' locks, and only tries `placing`.
public final class Function: Sendable {
  private struct State {
    var space: ConfigurationSpace
    var model: (any FunctionModel)?
    /// Whether the device asserts INTx. The level of the wire also depends on Interrupt Disable, MSI and MSI-X.
    var interruptAsserted = false
  }

  private struct Wire {
    var line: (any InterruptLine)?
    var isCut = false
  }

  private struct WeakBus {
    weak var bus: Bus?
  }

  public let description: FunctionDescription
  public let requester: Requester
  public let environment: DeviceEnvironment
  public let msix: MSIX?
  public let msi: MSI?
  /// Offsets of the description's capabilities, in the same order.
  public let capabilityOffsets: [Int]
  /// Offsets of the description's extended capabilities, in the same order.
  public let extendedCapabilityOffsets: [Int]

  private let resetSpace: ConfigurationSpace
  let expressOffset: Int?
  private let msixOffset: Int?
  private let msiOffset: Int?
  private let powerManagementOffset: Int?
  private let state: Mutex<State>
  let placing: Mutex<BARPlacements>
  private let wire = Mutex(Wire())
  private let bus = Mutex(WeakBus())

  /// - Parameter address: device and function. `Bus.add` sets the bus number.
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
      let body = [UInt8](
        littleEndian: UInt16(layout.vectorCount - 1), UInt32(layout.tableOffset) | UInt32(layout.bar),
        UInt32(layout.pendingOffset) | UInt32(layout.pendingBar))
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
    placing = Mutex(BARPlacements(count: description.baseAddressRegisters.count))
  }

  /// Connects the function with its model. The two retain each other until `revoke`.
  public func install(_ model: any FunctionModel) {
    state.withLock { $0.model = model }
  }

  /// Sets the wire that INTx drives. The board calls this when it adds the function.
  public func connect(interruptLine: (any InterruptLine)?) {
    wire.withLock { if !$0.isCut { $0.line = interruptLine } }
  }

  var model: (any FunctionModel)? { state.withLock { $0.model } }

  /// The configuration space and the model at the same moment.
  var spaceAndModel: (space: ConfigurationSpace, model: (any FunctionModel)?) {
    state.withLock { ($0.space, $0.model) }
  }

  // MARK: Steps of the revocation

  /// Records the bus to which the function is added.
  func join(_ new: Bus) { bus.withLock { $0.bus = new } }

  func leaveBus() { bus.withLock { $0.bus }?.remove(self) }

  /// Deasserts INTx for good.
  func cutInterruptWire() {
    wire.withLock { wire in
      wire.isCut = true
      wire.line?.set(false)
      wire.line = nil
    }
  }

  /// Resets all registers and interrupt routes, and releases the model.
  func dropModel() {
    state.withLock { state in
      clear(&state)
      state.model = nil
    }
  }

  /// Calls `body` as an access to the function. Returns nil without a call if the function is refused.
  func access<Result>(_ body: () -> Result) -> Result? {
    guard let phase = environment.gate.enter() else { return nil }
    defer { environment.gate.leave(phase) }
    return body()
  }

  // MARK: Configuration accesses

  /// - Parameter offset: 0 to 4095; the whole access lies within the space.
  public func readConfiguration(offset: Int, width: AccessWidth) -> UInt64 {
    access { readConfigurationNow(offset, width) } ?? width.allOnes
  }

  /// Returns a register as software has written it, for the model's own use. Unlike `readConfiguration`, it also works
  /// in an access that began before the function was refused.
  public func register(at offset: Int, width: AccessWidth) -> UInt64 {
    state.withLock { $0.space.read(offset, width) }
  }

  private func readConfigurationNow(_ offset: Int, _ width: AccessWidth) -> UInt64 {
    if let answer = model?.readConfiguration(offset: offset, width: width) { return answer & width.allOnes }
    let pending = msi?.pending ?? 0
    let own = state.withLock { state in
      noteMasterAbort(&state)
      // Hardware owns these bits. Store them at each read, because a copy of the space would need an allocation.
      let status = state.space.get(UInt16.self, StandardOffset.status)
      state.space.set(StandardOffset.status, status & ~(1 << 3) | (state.interruptAsserted ? 1 << 3 : 0))
      if let msiOffset { state.space.set(msiOffset + 0x14, pending) }
      return state.space.read(offset, width)
    }
    return (model?.configurationRead(offset: offset, width: width, own: own) ?? own) & width.allOnes
  }

  public func writeConfiguration(offset: Int, width: AccessWidth, value: UInt64) {
    access { writeConfigurationNow(offset, width, value) }
  }

  private func writeConfigurationNow(_ offset: Int, _ width: AccessWidth, _ value: UInt64) {
    let touched = offset..<offset + width.rawValue
    var resets = false
    var losesBusMaster = false
    state.withLock { state in
      if !description.isBridge, let expressOffset, touched.contains(expressOffset + ExpressCapability.deviceControl + 1)
      {
        let shift = 8 * (expressOffset + ExpressCapability.deviceControl + 1 - offset)
        resets = (value >> shift)[bit: 7]
      }
      let power = powerState(in: state.space)
      noteMasterAbort(&state)
      state.space.write(offset, width, value)
      refuseUnsupportedPowerState(in: &state.space, former: power)
      if touched.overlaps(StandardOffset.commandBytes) {
        let command = Command(rawValue: state.space.get(UInt16.self, StandardOffset.command))
        let couldSend = requester.busMasterEnable
        requester.busMasterEnable = command.contains(.busMasterEnable)
        if !couldSend, requester.busMasterEnable { sendPending(state) }
        losesBusMaster = couldSend && !requester.busMasterEnable
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
    if losesBusMaster { environment.forgetRemoteMappings() }
    if touched.overlaps(StandardOffset.commandBytes)
      || touched.overlaps(StandardOffset.baseAddressRegisters..<0x28)
      || touched.overlaps(StandardOffset.expansionROM..<StandardOffset.expansionROM + 4)
      || powerManagementOffset.map({ touched.contains($0 + 4) }) == true
    {
      updatePlacement()
    }
    model?.configurationWritten(offset: offset, width: width, value: value & width.allOnes)
  }

  /// Returns the offset of the first extended capability with an identifier; nil if there is none.
  public func extendedCapability(_ id: UInt16) -> Int? {
    description.extendedCapabilities.firstIndex { $0.id == id }.map { extendedCapabilityOffsets[$0] }
  }

  /// A consistent copy of the configuration space.
  var configuration: ConfigurationSpace { state.withLock { $0.space } }

  /// Reacts to a change of the addresses that a bridge above forwards, or of its Bus Master Enable.
  /// - Parameter isRenumbered: whether the change gave the function another requester ID.
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
    if isRenumbered || !requester.busMasterEnable { environment.forgetRemoteMappings() }
    updatePlacement()
    model?.configurationWritten(offset: StandardOffset.command, width: .word, value: UInt64(command))
  }

  /// Sends pending messages, now that the function may make requests again.
  private func sendPending(_ state: State) {
    msix?.sendPending()
    if let msiOffset { msi?.update(from: state.space, at: msiOffset) }
  }

  /// Changes registers as the function's hardware does: to set status bits, for example.
  public func updateConfiguration(_ update: (inout ConfigurationSpace) -> Void) {
    state.withLock { update(&$0.space) }
  }

  /// Resets the function: Function Level Reset, or its part of a reset of the board.
  public func reset() {
    access {
      state.withLock { clear(&$0) }
      environment.forgetRemoteMappings()
      updatePlacement()
      model?.reset()
    }
  }

  /// Resets all registers. The caller holds the function's lock, so a concurrent configuration write happens completely
  /// before or after this.
  private func clear(_ state: inout State) {
    requester.busMasterEnable = false
    _ = requester.takeMasterAbort()
    state.space = resetSpace
    state.interruptAsserted = false
    driveInterrupt(state)
    msix?.reset()
    msi?.reset()
  }

  /// Sets Received Master Abort, RW1C (PCI Local Bus 3.0, section 6.2.3; PCI Express Base 7.5.1.1.4), if a request was
  /// unanswered. This model sets the bit for writes too. A real Express requester cannot detect an unanswered write,
  /// because writes have no completion.
  private func noteMasterAbort(_ state: inout State) {
    guard requester.takeMasterAbort() else { return }
    state.space.set(StandardOffset.status, state.space.get(UInt16.self, StandardOffset.status) | 1 << 13)
  }

  /// Returns PowerState of the Power Management capability: 0 for D0, 3 for D3hot.
  func powerState(in space: ConfigurationSpace) -> UInt8 {
    powerManagementOffset.map { space.get(UInt8.self, $0 + 4) & 3 } ?? 0
  }

  /// Restores the former power state if software wrote D1 or D2 and the function does not support it (D1_Support,
  /// D2_Support).
  private func refuseUnsupportedPowerState(in space: inout ConfigurationSpace, former: UInt8) {
    guard let powerManagementOffset else { return }
    let state = powerState(in: space)
    let capabilities = space.get(UInt16.self, powerManagementOffset + 2)
    guard state == 1 && !capabilities[bit: 9] || state == 2 && !capabilities[bit: 10] else { return }
    space.set(powerManagementOffset + 4, space.get(UInt8.self, powerManagementOffset + 4) & ~3 | former)
  }

  // MARK: Interrupts

  /// Asserts or deasserts INTx. The change reaches the wire only while MSI, MSI-X and Interrupt Disable are off.
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
}
