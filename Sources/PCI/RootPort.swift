import Hardware
import Synchronization

/// A root port (PCI Express Base, sections 1.3.1 and 7.5.1.3): the bridge from bus 0 to one link. Its function holds
/// the registers; this class acts on writes to them. The link is up while it is neither disabled nor held in reset, and
/// the slot has power. `SlotRegisters` models a slot with hotplug.
///
/// Lock order: `published`, then its function's lock. The port publishes its new state first, and then calls the
/// functions below it with neither lock held. If two vCPUs write at once, the later one therefore acts on both writes.
public final class RootPort: FunctionModel {
  /// What firmware reserves below the port for later devices.
  public struct Reservation: Hashable, Sendable {
    /// Bytes of I/O space; nil for none.
    public var io: UInt64?
    /// Bytes for memory BARs; nil for the firmware's default, which is zero for a port without hotplug.
    public var memory: UInt64?
    public var prefetchable: UInt64?
    /// Bus numbers besides that of the port's own bus; nil for none.
    public var buses: UInt8?

    public init() {}
  }

  private struct Published: Sendable {
    var header: BridgeHeader
    var isLinkUp = true
    /// The slot's registers; nil without hotplug.
    var slot: SlotRegisters?
    /// The level of the slot's interrupt.
    var interrupts = false
  }

  public let function: Function
  /// The link below the port.
  public let bus: Bus
  public let reservation: Reservation
  /// The hotplug method; nil for a slot without hotplug.
  public let hotplug: HotplugWay?
  private let routes: BusRoutes
  private let published: Mutex<Published>
  let onEject: @Sendable () -> Void
  let onRefusal: @Sendable () -> Void
  private let onSlotChange: (@Sendable (SlotChange) -> Void)?

  /// Creates QEMU's `pcie-root-port`. The caller adds `function` to bus 0.
  /// - Parameters:
  ///   - routes: the routes of the root complex.
  ///   - onEject: called when software switched off a slot with a device, which ejects the device. Called on the vCPU's
  ///     thread, without locks.
  ///   - onRefusal: called when software accepted a request to remove the device, and then kept the device. Called like
  ///     `onEject`.
  ///   - onSlotChange: called when the slot's registers changed, except by a reset. Called on any thread, without
  ///     locks; the calls for two concurrent changes may come in either order. Must not block.
  public init(
    _ port: ExpressPort, hotplug: HotplugWay? = nil, reservation: Reservation = Reservation(),
    environment: PCIEnvironment, address: RequesterID, routes: BusRoutes,
    onEject: @escaping @Sendable () -> Void = {}, onRefusal: @escaping @Sendable () -> Void = {},
    onSlotChange: (@Sendable (SlotChange) -> Void)? = nil
  ) {
    var description = FunctionDescription(vendorID: 0x1b36, deviceID: 0x000c, classCode: 0x060400)
    description.isBridge = true
    description.interruptPin = 1
    description.msiVectorCount = 1
    description.expressType = .rootPort
    description.expressPort = port
    description.expressPort?.hotplug = hotplug
    // Subsystem ID and Subsystem Vendor ID (PCI-to-PCI Bridge Architecture 1.2, section 3.2.5.13): a type 1 header has
    // no registers for them.
    description.capabilities = [.init(id: 0x0d, body: [0, 0, 0x36, 0x1b, 0, 0])]
    description.extendedCapabilities = [
      .rootPortErrorReporting,
      // The port forwards all requests from below upstream, with the bus number of its link as their source.
      .accessControl([.sourceValidation, .requestRedirect, .completionRedirect, .upstreamForwarding]),
    ]
    function = Function(description, at: address, environment: environment)
    bus = Bus(number: 0, isLink: true)
    self.reservation = reservation
    self.hotplug = hotplug
    self.routes = routes
    self.onEject = onEject
    self.onRefusal = onRefusal
    self.onSlotChange = onSlotChange
    published = Mutex(
      Published(header: BridgeHeader(function.configuration), slot: hotplug.map { SlotRegisters($0) }))
    function.install(self)
    routes.add(self)
  }

  /// The header as software has written it.
  public var header: BridgeHeader { published.withLock { $0.header } }
  /// Whether functions below the port answer.
  var isLinkUp: Bool { published.withLock { $0.isLinkUp } }

  /// Returns whether the port forwards all addresses of a BAR.
  func forwards(_ space: BaseAddressRegister.Space, base: UInt64, size: UInt64) -> Bool {
    published.withLock { $0.isLinkUp && $0.header.forwards(space, base: base, size: size) }
  }

  // MARK: FunctionModel

  public func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    let touched = offset..<offset + width.rawValue
    let linkControl = (function.expressOffset ?? 0) + ExpressCapability.linkControl
    writeSlot(offset: offset, width: width, value: value)
    guard
      touched.overlaps(StandardOffset.commandBytes)
        || touched.overlaps(BridgeHeader.Offset.primaryBus..<0x30)
        || touched.overlaps(BridgeHeader.Offset.bridgeControl..<BridgeHeader.Offset.bridgeControl + 2)
        || touched.contains(linkControl)
    else { return }
    apply()
  }

  public func reset() {
    prepareSlot()
    apply()
  }

  /// Revokes the functions below first, because their requests and interrupts pass the port.
  public func endRequests() {
    for function in bus.all.reversed() { function.revoke() }
  }

  public func released() { routes.remove(self) }

  /// Adds Data Link Layer Link Active, Presence Detect State and the slot's registers to a configuration read.
  public func configurationRead(offset: Int, width: AccessWidth, own: UInt64) -> UInt64 {
    guard let express = function.expressOffset,
      (offset..<offset + width.rawValue).overlaps(
        express + ExpressCapability.linkStatus..<express + ExpressCapability.slotStatus + 2)
    else { return own }
    let (slot, isLinkUp) = published.withLock { ($0.slot, $0.isLinkUp) }
    let isPresent = slot?.isPresent ?? !bus.isEmpty
    let isLinkActive = slot?.isLinkActive ?? (isPresent && isLinkUp)
    var value = own
    for (register, bits) in [
      (ExpressCapability.linkStatus, isLinkActive ? ExpressCapability.linkActive : 0),
      (ExpressCapability.slotControl, slot?.control ?? 0),
      (ExpressCapability.slotStatus, slot?.status ?? (isPresent ? ExpressCapability.presenceDetect : 0)),
    ] where bits != 0 {
      let shift = 8 * (express + register - offset)
      // Swift's smart shift drops the bytes outside the access.
      value |= UInt64(bits) << shift
    }
    return value & width.allOnes
  }

  private func apply() {
    let (before, after, _) = publish { _ in }
    notify(before, after)
    propagate(before, after)
  }

  /// Changes the slot, and acts on the consequences for the link and the interrupt.
  /// - Parameter isReset: whether this is a reset, which is not reported to `onSlotChange`.
  func changeSlot<Result: Sendable>(
    isReset: Bool = false, _ change: (inout SlotRegisters) -> Result
  ) -> Result? {
    let (before, after, result) = publish { published in
      published.slot.map { slot in
        var slot = slot
        defer { published.slot = slot }
        return change(&slot)
      }
    }
    if !isReset { notify(before, after) }
    if before.isLinkUp != after.isLinkUp { propagate(before, after) }
    return result
  }

  /// Updates `published` from the registers.
  /// - Parameter change: runs in the same step, under the lock.
  private func publish<Result: Sendable>(
    _ change: (inout Published) -> Result
  ) -> (before: Published, after: Published, Result) {
    let (before, after, result) = published.withLock { published in
      let before = published
      let result = change(&published)
      let space = function.configuration
      published.header = BridgeHeader(space)
      let isDisabled =
        function.expressOffset.map {
          space.get(UInt16.self, $0 + ExpressCapability.linkControl) & ExpressCapability.linkDisable != 0
        } ?? false
      published.isLinkUp =
        !published.header.secondaryBusReset && !isDisabled && published.slot?.isPowered != false
      if let slot = published.slot {
        published.slot?.linkBecame(active: slot.isPresent && published.isLinkUp)
        published.interrupts = published.slot?.interrupts == true
        // Drive the wire under the lock, so that it keeps the level of the later of two changes.
        if published.interrupts != before.interrupts { function.setINTx(published.interrupts) }
      }
      return (before, published, result)
    }
    if after.interrupts, !before.interrupts { function.msi?.signal(0) }
    return (before, after, result)
  }

  /// Calls `onSlotChange` if the slot's registers changed.
  private func notify(_ before: Published, _ after: Published) {
    guard let onSlotChange, let old = before.slot, let new = after.slot else { return }
    let change = SlotChange(before: .init(old), after: .init(new))
    if change.before != change.after { onSlotChange(change) }
  }

  /// Applies a change to the routes and to the functions below.
  private func propagate(_ before: Published, _ after: Published) {
    routes.refresh()
    let below = bus.all
    if before.isLinkUp, !after.isLinkUp {
      for function in below { function.reset() }
    }
    let isRenumbered = before.header.secondaryBus != after.header.secondaryBus
    for function in below { function.upstreamChanged(isRenumbered: isRenumbered) }
  }

  // MARK: Actions of firmware

  /// Switches the slot on if it has a device, and off otherwise.
  func prepareSlot() { _ = changeSlot(isReset: true) { $0.reset(isPresent: !bus.isEmpty) } }

  func number(primary: UInt8, secondary: UInt8, subordinate: UInt8) {
    function.writeConfiguration(
      offset: BridgeHeader.Offset.primaryBus, width: .doubleword,
      value: UInt64(primary) | UInt64(secondary) << 8 | UInt64(subordinate) << 16)
  }

  /// - Parameter range: aligned to 4 KiB for I/O and to 1 MiB for memory; not empty.
  func open(_ window: BridgeWindow, _ range: Range<UInt64>) {
    let base = range.lowerBound
    let last = range.upperBound - 1
    func write(_ offset: Int, _ width: AccessWidth, _ value: UInt64) {
      function.writeConfiguration(offset: offset, width: width, value: value & width.allOnes)
    }
    switch window {
    case .io: write(BridgeHeader.Offset.ioBase, .word, base >> 8 & 0xf0 | last & 0xf000)
    case .memory: write(BridgeHeader.Offset.memoryBase, .doubleword, base >> 16 & 0xfff0 | last & 0xfff0_0000)
    case .prefetchable:
      write(BridgeHeader.Offset.prefetchableBaseUpper, .doubleword, base >> 32)
      write(BridgeHeader.Offset.prefetchableLimitUpper, .doubleword, last >> 32)
      write(BridgeHeader.Offset.prefetchableBase, .doubleword, base >> 16 & 0xfff0 | last & 0xfff0_0000)
    }
  }
}

public enum BridgeWindow: CaseIterable, Hashable, Sendable {
  case io
  case memory
  case prefetchable

  /// The granularity of a window's base and size, in bytes.
  var granule: UInt64 { self == .io ? 1 << 12 : 1 << 20 }

  /// Chooses the window for a BAR, as firmware does. Only the prefetchable window may be above 4 GiB, so only BARs that
  /// may be there go into it.
  init(of bar: BaseAddressRegister) {
    self =
      switch bar.space {
      case .io: .io
      case .memory64 where bar.prefetchable: .prefetchable
      case .memory32, .memory64, .expansionROM: .memory
      }
  }
}
