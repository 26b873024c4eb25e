import Hardware
import Synchronization

/// A root port (PCI Express Base 1.3.1, 7.5.1.3): the bridge from bus 0 to one link. Its function is the registers; this
/// acts on what software writes there. The link is up while it is neither disabled nor held in reset, and the slot has
/// power. What a slot does whose device comes and goes is in `SlotRegisters`.
///
/// Lock order: `published`, then its function's lock. What is below it is called with neither held, after the new state
/// is there to be asked for: whichever of two CPUs comes last acts on what both wrote.
public final class RootPort: FunctionModel {
  /// Room that firmware leaves for what is not there yet, in bytes; and buses beside the link's own.
  public struct Reservation: Hashable, Sendable {
    public var io: UInt64 = 0
    /// nil for what firmware finds right: nothing where the device stays.
    public var memory: UInt64?
    public var prefetchable: UInt64?
    public var buses: UInt8 = 0

    public init() {}
  }

  private struct Published: Sendable {
    var header: BridgeHeader
    var isLinkUp = true
    /// nil where nothing comes and goes.
    var slot: SlotRegisters?
    /// The slot's interrupt as it was last driven.
    var interrupts = false
  }

  public let function: Function
  /// The link below.
  public let bus: Bus
  public let reservation: Reservation
  /// nil for a slot whose device stays.
  public let hotplug: HotplugWay?
  private let routes: BusRoutes
  private let published: Mutex<Published>
  let onEject: @Sendable () -> Void
  let onRefusal: @Sendable () -> Void
  private let onSlotChange: (@Sendable (SlotChange) -> Void)?

  /// QEMU's `pcie-root-port`.
  /// - Parameters:
  ///   - routes: of the root complex that the caller puts `function` on.
  ///   - onEject: software switched off the slot for good, with a device in it. On a vCPU's thread, with no lock held.
  ///   - onRefusal: software took the wish to remove the device, and then kept it. Called as `onEject` is.
  ///   - onSlotChange: the slot's registers have changed, other than by a reset. On any thread, with no lock held: of two
  ///     changes at once, the later may come first. Waits for nothing.
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
    // Subsystem ID and Subsystem Vendor ID (PCI-to-PCI Bridge Architecture 1.2, 3.2.5.13), which the header has no
    // registers for.
    description.capabilities = [.init(id: 0x0d, body: [0, 0, 0x36, 0x1b, 0, 0])]
    description.extendedCapabilities = [
      .rootPortErrorReporting,
      // True of it: requests from below go up, whomever they are for, with the source that its bus has.
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

  /// As software has written it.
  public var header: BridgeHeader { published.withLock { $0.header } }
  /// Whether what is below answers.
  var isLinkUp: Bool { published.withLock { $0.isLinkUp } }

  func forwards(_ space: BaseAddressRegister.Space, base: UInt64, size: UInt64) -> Bool {
    published.withLock { $0.isLinkUp && $0.header.forwards(space, base: base, size: size) }
  }

  // MARK: FunctionModel

  public func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    let touched = offset..<offset + width.rawValue
    let linkControl = (function.expressOffset ?? 0) + ExpressCapability.linkControl
    writeSlot(offset: offset, width: width, value: value)
    guard
      touched.overlaps(StandardOffset.command..<StandardOffset.command + 2)
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

  /// What is below goes first: its requests and interrupts pass the port, and nothing else leads to it.
  public func endRequests() {
    for function in bus.all.reversed() { function.revoke() }
  }

  public func released() { routes.remove(self) }

  /// Data Link Layer Link Active and Presence Detect State follow what is below; the slot's registers are its own.
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
      // Smart shifts: what is not within the access falls out.
      value |= UInt64(bits) << shift
    }
    return value & width.allOnes
  }

  private func apply() {
    let (before, after, _) = publish { _ in }
    tell(before, after)
    act(before, after)
  }

  /// Changes the slot, and acts on what follows for the link and the interrupt.
  /// - Parameter isReset: what happens is no event.
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
    if !isReset { tell(before, after) }
    if before.isLinkUp != after.isLinkUp { act(before, after) }
    return result
  }

  /// Takes over what the registers say now.
  /// - Parameter change: made in the same step.
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
        // Under the lock, so that of two changes the later one stays.
        if published.interrupts != before.interrupts { function.setINTx(published.interrupts) }
      }
      return (before, published, result)
    }
    if after.interrupts, !before.interrupts { function.msi?.signal(0) }
    return (before, after, result)
  }

  private func tell(_ before: Published, _ after: Published) {
    guard let onSlotChange, let old = before.slot, let new = after.slot else { return }
    let change = SlotChange(before: .init(old), after: .init(new))
    if change.before != change.after { onSlotChange(change) }
  }

  /// Has what is below follow.
  private func act(_ before: Published, _ after: Published) {
    routes.refresh()
    let below = bus.all
    if before.isLinkUp, !after.isLinkUp {
      for function in below { function.reset() }
    }
    let isRenumbered = before.header.secondaryBus != after.header.secondaryBus
    for function in below { function.upstreamChanged(isRenumbered: isRenumbered) }
  }

  // MARK: Firmware's part

  /// Leaves the slot on with a device in it, and off without one.
  func prepareSlot() { _ = changeSlot(isReset: true) { $0.reset(isPresent: !bus.isEmpty) } }

  /// Writes the numbers of its buses.
  func number(primary: UInt8, secondary: UInt8, subordinate: UInt8) {
    function.writeConfiguration(
      offset: BridgeHeader.Offset.primaryBus, width: .doubleword,
      value: UInt64(primary) | UInt64(secondary) << 8 | UInt64(subordinate) << 16)
  }

  /// Opens a window.
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

/// The kinds of window that a bridge has.
public enum BridgeWindow: CaseIterable, Hashable, Sendable {
  case io
  case memory
  case prefetchable

  /// In bytes, of a window's base and size.
  var granule: UInt64 { self == .io ? 1 << 12 : 1 << 20 }

  /// Where firmware puts a BAR. Only the prefetchable window may be above 4 GiB, so only what can be there goes into it.
  init(of bar: BaseAddressRegister) {
    self =
      switch bar.space {
      case .io: .io
      case .memory64 where bar.prefetchable: .prefetchable
      case .memory32, .memory64, .expansionROM: .memory
      }
  }
}
