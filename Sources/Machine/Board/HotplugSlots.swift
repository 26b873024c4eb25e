import Devices
import Hardware
import PCI
import Synchronization

/// The slots below a board's root ports: announces added devices to the guest and asks it to give devices up. All slots
/// of a machine use the same hotplug method: the ACPI hotplug controller, or the slot registers of the ports (native).
///
/// Lock order: code that holds its lock takes no other lock; ports and the controller are called without it.
final class HotplugSlots: Sendable {
  let way: HotplugWay
  /// The ACPI hotplug controller; nil if the slots use native hotplug.
  let controller: ACPIHotplug?
  /// The number of each slot in the ACPI tables, by the address of its port.
  private let numbers: [RequesterID: Int]
  private let ports = Mutex<[RequesterID: RootPort]>([:])
  private let listener: Listener
  private let trace: MachineTrace

  /// The handlers of the guest's answers, by the port of the slot. Called on a vCPU's thread with no lock held.
  struct Handlers {
    /// The guest gives up the devices.
    var eject: @Sendable (RequesterID) -> Void = { _ in }
    /// The guest has released the devices after their surprise removal.
    var release: @Sendable (RequesterID) -> Void = { _ in }
    /// The guest refuses to give up the devices.
    var refusal: @Sendable (RequesterID) -> Void = { _ in }
    /// The guest reports, by _OST (ACPI 6.5, section 6.3.5), how it has handled a notification.
    var status: @Sendable (RequesterID, _ source: UInt32, _ status: UInt32) -> Void = { _, _, _ in }
  }

  /// Holds the handlers. A separate object, which the controller can hold without a cycle.
  private final class Listener: Sendable {
    let handlers = Mutex(Handlers())

    func eject(_ port: RequesterID) { handlers.withLock { $0.eject }(port) }
    func release(_ port: RequesterID) { handlers.withLock { $0.release }(port) }
    func refusal(_ port: RequesterID) { handlers.withLock { $0.refusal }(port) }
    func status(_ port: RequesterID, _ source: UInt32, _ status: UInt32) {
      handlers.withLock { $0.status }(port, source, status)
    }
  }

  /// - Parameters:
  ///   - addresses: the ports with a slot, in the order in which the ACPI tables number them.
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
    if trace.isOn(.appearanceRead) || trace.isOn(.removalRead) {
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

  /// Sets handlers of the guest's answers.
  func listen(_ change: (inout Handlers) -> Void) { listener.handlers.withLock { change(&$0) } }

  /// Called by a port when the guest gives up or keeps its devices by means of the slot registers (native hotplug).
  func ejected(below port: RequesterID) { listener.eject(port) }
  func refused(below port: RequesterID) { listener.refusal(port) }

  /// Returns a listener that traces changes of a port's slot registers; nil if those events are not traced.
  func changeListener(of port: RequesterID) -> (@Sendable (SlotChange) -> Void)? {
    guard trace.isOn(.slotControlWritten) || trace.isOn(.slotEventSet) else { return nil }
    return { [trace] in trace.record($0, below: port) }
  }

  func add(_ port: RootPort) { ports.withLock { $0[port.function.requester.id] = port } }
  func remove(_ port: RequesterID) { ports.withLock { $0[port] = nil } }

  /// Marks a slot as occupied, after function 0, the last function of its device, was added below the port.
  /// - Parameter announcing: false before the guest starts: a starting guest finds the device without an announcement.
  func inserted(below port: RequesterID, announcing: Bool = true) {
    guard let model = ports.withLock({ $0[port] }) else { return }
    model.inserted()
    if let number = numbers[port] { controller?.inserted(number, announcing: announcing) }
  }

  /// Switches occupied slots on and empty ones off, by a reset of the ports. Called before the guest starts.
  func prepare() {
    for port in ports.withLock({ Array($0.values) }) { port.function.reset() }
  }

  /// Returns whether the guest may still use a device after its surprise removal. `Handlers.release` is called when
  /// the guest has released it. A guest without hotplug support never releases it.
  func awaitsRelease(below port: RequesterID) -> Bool {
    guard let controller, let number = numbers[port] else { return false }
    return controller.awaitsRelease(number)
  }

  /// Asks the guest to give up the devices below a port.
  func requestRemoval(below port: RequesterID) -> RemovalAnswer {
    guard let controller else { return ports.withLock { $0[port] }?.requestRemoval() ?? .unpowered }
    guard let number = numbers[port] else { return .unpowered }
    trace.record(.unplugRequested, [.number("bsel", number)])
    controller.requestRemoval(number)
    return .asked
  }

  /// Marks a slot as empty.
  /// - Parameter isSurprise: true if the guest did not give the device up. Then the guest is notified.
  func emptied(below port: RequesterID, isSurprise: Bool) {
    ports.withLock { $0[port] }?.emptied()
    if let number = numbers[port] { controller?.emptied(number, announcing: isSurprise) }
  }
}
