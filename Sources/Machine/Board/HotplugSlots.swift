import Devices
import Hardware
import PCI
import Synchronization

/// The slots below a board's root ports: how the guest learns that a device has come, and is asked to let one go. All
/// of them go one way: by ACPI, or by the registers of the ports.
///
/// Lock order: its lock is a leaf; ports and the controller are called without it.
final class HotplugSlots: Sendable {
  let way: HotplugWay
  /// nil in the native way.
  let controller: ACPIHotplug?
  /// What the ACPI tables call a slot, by the address of its port.
  private let numbers: [RequesterID: Int]
  private let ports = Mutex<[RequesterID: RootPort]>([:])
  private let listener: Listener
  private let trace: MachineTrace

  /// Whom the guest's answers go to. Apart from the rest, as chips hold it.
  private final class Listener: Sendable {
    struct Handlers {
      var eject: @Sendable (RequesterID) -> Void = { _ in }
      var release: @Sendable (RequesterID) -> Void = { _ in }
      var refusal: @Sendable (RequesterID) -> Void = { _ in }
      var status: @Sendable (RequesterID, _ source: UInt32, _ status: UInt32) -> Void = { _, _, _ in }
    }

    let handlers = Mutex(Handlers())

    func eject(_ port: RequesterID) { handlers.withLock { $0.eject }(port) }
    func release(_ port: RequesterID) { handlers.withLock { $0.release }(port) }
    func refusal(_ port: RequesterID) { handlers.withLock { $0.refusal }(port) }
    func status(_ port: RequesterID, _ source: UInt32, _ status: UInt32) {
      handlers.withLock { $0.status }(port, source, status)
    }
  }

  /// - Parameters:
  ///   - addresses: of the ports with a slot, as the ACPI tables number them.
  ///   - raise: raises the general-purpose event of ACPI hotplug.
  init(
    _ way: HotplugWay, ports addresses: [RequesterID], trace: MachineTrace = .off, raise: @escaping @Sendable () -> Void
  ) {
    self.way = way
    self.trace = trace
    numbers = Dictionary(uniqueKeysWithValues: addresses.enumerated().map { ($1, $0) })
    let listener = Listener()
    self.listener = listener
    controller = way == .acpi ? Self.makeController(addresses, listener, trace, raise: raise) : nil
  }

  private static func makeController(
    _ addresses: [RequesterID], _ listener: Listener, _ trace: MachineTrace, raise: @escaping @Sendable () -> Void
  ) -> ACPIHotplug {
    var onAnnouncementRead: (@Sendable (ACPIHotplug.Announcement) -> Void)?
    if trace.tells(.appearanceRead) || trace.tells(.removalRead) {
      onAnnouncementRead = { announcement in trace.record(announcement) }
    }
    return ACPIHotplug(
      slotCount: addresses.count, raise: raise,
      onEject: { slot in
        trace.recordEject(slot)
        if addresses.indices.contains(slot) { listener.eject(addresses[slot]) }
      },
      onRelease: { slot in
        trace.recordEject(slot)
        if addresses.indices.contains(slot) { listener.release(addresses[slot]) }
      },
      onStatus: { slot, source, status in
        trace.recordReport(slot, source: source, status: status)
        if addresses.indices.contains(slot) { listener.status(addresses[slot], source, status) }
      }, onAnnouncementRead: onAnnouncementRead)
  }

  /// - Parameter handler: the guest gives up what is below a port. On a vCPU's thread, with no lock held.
  func onEject(_ handler: @escaping @Sendable (RequesterID) -> Void) {
    listener.handlers.withLock { $0.eject = handler }
  }

  /// - Parameter handler: the guest has dropped what was pulled out from below a port. Likewise.
  func onRelease(_ handler: @escaping @Sendable (RequesterID) -> Void) {
    listener.handlers.withLock { $0.release = handler }
  }

  /// - Parameter handler: the guest keeps what it was asked for. Likewise.
  func onRefusal(_ handler: @escaping @Sendable (RequesterID) -> Void) {
    listener.handlers.withLock { $0.refusal = handler }
  }

  /// - Parameter handler: what the guest says about a notification that it received (ACPI 6.5, 6.3.5). Likewise.
  func onStatus(_ handler: @escaping @Sendable (RequesterID, _ source: UInt32, _ status: UInt32) -> Void) {
    listener.handlers.withLock { $0.status = handler }
  }

  /// Ports tell the same by their registers.
  func ejected(below port: RequesterID) { listener.eject(port) }
  func refused(below port: RequesterID) { listener.refusal(port) }

  /// What looks on as the registers of a port's slot change; nil where that is not wanted.
  func changeListener(of port: RequesterID) -> (@Sendable (SlotChange) -> Void)? {
    guard trace.tells(.slotControlWritten) || trace.tells(.slotEventSet) else { return nil }
    return { [trace] in trace.record($0, below: port) }
  }

  func add(_ port: RootPort) { ports.withLock { $0[port.function.requester.id] = port } }
  func remove(_ port: RequesterID) { ports.withLock { $0[port] = nil } }

  /// Function 0 of a device is below a port, and the others before it.
  /// - Parameter announcing: false before the guest starts, which finds it by itself.
  func inserted(below port: RequesterID, announcing: Bool = true) {
    guard let model = ports.withLock({ $0[port] }) else { return }
    model.inserted()
    if let number = numbers[port] { controller?.inserted(number, announcing: announcing) }
  }

  /// Before the guest starts: full slots are switched on, empty ones off.
  func prepare() {
    for port in ports.withLock({ Array($0.values) }) { port.function.reset() }
  }

  /// Whether the guest may still have a device that was pulled out. `onRelease` follows, unless the guest knows nothing of
  /// hotplug.
  func awaitsRelease(below port: RequesterID) -> Bool {
    guard let controller, let number = numbers[port] else { return false }
    return controller.awaitsRelease(number)
  }

  /// Asks the guest for what is below a port.
  func requestRemoval(below port: RequesterID) -> RemovalAnswer {
    guard let controller else { return ports.withLock { $0[port] }?.requestRemoval() ?? .unpowered }
    guard let number = numbers[port] else { return .unpowered }
    trace.record(.unplugRequested, [.number("bsel", number)])
    controller.requestRemoval(number)
    return .asked
  }

  /// Nothing is below a port any more.
  /// - Parameter isSurprise: the guest did not give it up, and must hear of it.
  func emptied(below port: RequesterID, isSurprise: Bool) {
    ports.withLock { $0[port] }?.emptied()
    if let number = numbers[port] { controller?.emptied(number, announcing: isSurprise) }
  }
}
