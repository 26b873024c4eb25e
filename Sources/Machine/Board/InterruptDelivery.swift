import Hardware
import Synchronization
import VTd

/// Delivers interrupts to the local APICs: from the message of a source, through the remapper, if there is one, to the
/// accelerator. A route is resolved when its message is set and when the guest invalidates the entries that it depends
/// on, not at every interrupt.
///
/// A message is a DMA write (PCI Express Base 6.1.4). If its address is outside the interrupt address range, it goes to
/// memory.
///
/// Lock order: the source's lock, then the lock of its route, then those of the unit and the accelerator.
final class InterruptDelivery: InterruptRouter, InvalidationObserver, MessageSink {
  fileprivate let localInterrupts: any LocalInterrupts
  private let memory: any PhysicalMemory
  private let unit = Mutex<TranslationUnit?>(nil)
  private let routes = Mutex<[WeakRoute]>([])

  private struct WeakRoute {
    weak var route: MessageRoute?
  }

  init(localInterrupts: any LocalInterrupts, memory: any PhysicalMemory) {
    self.localInterrupts = localInterrupts
    self.memory = memory
  }

  /// Sends every message through the interrupt remapping of this unit from now on.
  func remap(by unit: TranslationUnit) {
    self.unit.withLock { $0 = unit }
    unit.addObserver(self)
  }

  /// Undoes `remap`. Until then the unit and this object hold references to each other.
  func stopRemapping() {
    let former = unit.withLock { unit in
      defer { unit = nil }
      return unit
    }
    former?.removeObserver(self)
  }

  func makeRoute(for requester: Requester) -> any InterruptRoute {
    track(VectorRoute(delivery: self, requester: requester))
  }

  /// Makes the route of an IOAPIC pin.
  func makePinRoute(pin: Int, requester: Requester) -> PinRoute {
    track(PinRoute(delivery: self, requester: requester, pin: pin))
  }

  /// Makes a route that bypasses the remapper, for the events of the unit itself.
  func makeUnremappedRoute() -> any InterruptRoute { UnremappedRoute(delivery: self) }

  private func track<Route: MessageRoute>(_ route: Route) -> Route {
    routes.withLock { routes in
      routes.removeAll { $0.route == nil }
      routes.append(WeakRoute(route: route))
    }
    return route
  }

  fileprivate func resolve(
    _ message: InterruptMessage, from requester: Requester, recordFault: Bool
  ) -> InterruptMessage? {
    guard let unit = unit.withLock({ $0 }) else { return message }
    switch unit.remap(message, from: requester.id, recordFault: recordFault) {
    case .deliver(let remapped): return remapped
    case .blocked: return nil
    }
  }

  /// Counts and traces a request that uses a route resolved earlier.
  fileprivate func note(_ message: InterruptMessage, resolved: InterruptMessage, from requester: Requester) {
    unit.withLock { $0 }?.note(message, remappedTo: resolved, from: requester.id)
  }

  /// Makes the port by which a function's messages reach memory.
  fileprivate func makePort(for requester: Requester) -> any DMAPort {
    if let unit = unit.withLock({ $0 }) { return unit.makePort(for: requester) }
    return DirectDMAPort(memory: memory, requester: requester)
  }

  /// Sends the message of one of the unit's own events.
  fileprivate func sendUnremapped(_ message: InterruptMessage) {
    if let interrupt = message.eventInterrupt {
      localInterrupts.send(interrupt)
    } else {
      _ = memory.storeUInt32(message.data, at: message.address)
    }
  }

  func invalidated(_ invalidations: [Invalidation]) {
    let concerned = invalidations.contains { invalidation in
      switch invalidation {
      case .interruptEntries, .interruptRemappingChanged: true
      default: false
      }
    }
    guard concerned else { return }
    for weak in routes.withLock({ $0 }) { weak.route?.reconsider() }
  }

  /// Delivers a device's DMA write to 0xFEEx_xxxx.
  func send(_ message: InterruptMessage, from requester: RequesterID) {
    let source = Requester(id: requester)
    if let resolved = resolve(message, from: source, recordFault: true) { localInterrupts.send(resolved) }
  }
}

extension InterruptMessage {
  /// Whether the message is an interrupt request: a write to 0xFEEx_xxxx (VT-d 3.15).
  fileprivate var isInterrupt: Bool { address >> 20 == 0xfee }

  /// The interrupt request of a unit's event; nil if the event's address is in memory.
  ///
  /// Bits 63:32 of the address are the register FEUADDR, IEUADDR or PEUADDR (VT-d 11.4.7, 11.4.9 and 11.4.11). Bits
  /// 31:8 of that register are bits 31:8 of an x2APIC destination, which KVM expects in the same place; they do not
  /// select where the write goes. Bits 7:0 of the register are reserved.
  fileprivate var eventInterrupt: InterruptMessage? {
    guard address & 0xfff0_0000 == 0xfee0_0000 else { return nil }
    return InterruptMessage(address: address & ~(0xff << 32), data: data)
  }
}

/// A route whose message goes through the remapper.
class MessageRoute: @unchecked Sendable {
  fileprivate struct State {
    var message: InterruptMessage?
    /// The message after remapping; nil if the remapper blocks it, or if there is no message.
    var resolved: InterruptMessage?
    /// The port that writes the message, if it goes to memory; otherwise nil.
    var port: (any DMAPort)?
  }

  fileprivate let delivery: InterruptDelivery
  fileprivate let requester: Requester
  fileprivate let state = Mutex(State())

  fileprivate init(delivery: InterruptDelivery, requester: Requester) {
    self.delivery = delivery
    self.requester = requester
  }

  func set(_ message: InterruptMessage?) {
    state.withLock { state in
      state.message = message
      state.port = message.flatMap { $0.isInterrupt ? nil : state.port ?? delivery.makePort(for: requester) }
      update(&state)
    }
  }

  /// Resolves the route again, after the guest invalidated interrupt entries.
  fileprivate func reconsider() { state.withLock { update(&$0) } }

  private func update(_ state: inout State) {
    let request = state.port == nil ? state.message : nil
    let resolved = request.flatMap { delivery.resolve($0, from: requester, recordFault: false) }
    guard resolved != state.resolved else { return }
    state.resolved = resolved
    install(resolved)
  }

  func signal() {
    state.withLock { state in
      guard let message = state.message else { return }
      if let resolved = state.resolved {
        delivery.note(message, resolved: resolved, from: requester)
        send(resolved)
      } else if let port = state.port {
        // The unit records a fault for a write that it blocks. The message is lost then.
        try? port.storeUInt32(message.data, at: message.address)
      } else if let resolved = delivery.resolve(message, from: requester, recordFault: true) {
        // Remap again: either this records the fault, or the entry has become valid.
        delivery.localInterrupts.send(resolved)
      }
    }
  }

  /// Passes the resolved message to the accelerator. Called with the route's lock held.
  fileprivate func install(_ resolved: InterruptMessage?) {}

  /// Sends the message. Called with the route's lock held.
  /// - Parameter resolved: the message that was installed last.
  fileprivate func send(_ resolved: InterruptMessage) {}
}

/// A route with an eventfd by which the kernel's VFIO sends the message, for a passed-through device.
protocol EventRoute: InterruptRoute {
  /// Returns the eventfd that sends the message. While there is no message, its signals stay pending. Every call
  /// returns the same eventfd, which stays open as long as the route exists; nil if the host cannot provide one.
  func event() -> Int32?
}

/// The route of an MSI or MSI-X vector.
private final class VectorRoute: MessageRoute, EventRoute, @unchecked Sendable {
  /// Made on first use, because most vectors are never used. Protected by the route's lock.
  private var vector: (any MessageVector)?
  /// Whether VFIO signals the vector, even while there is no message. Protected by the route's lock.
  private var isSignalledByOthers = false

  override func install(_ resolved: InterruptMessage?) {
    guard let resolved else {
      if isSignalledByOthers { vector?.hold() }
      return
    }
    madeVector.set(resolved)
  }

  private var madeVector: any MessageVector {
    if let vector { return vector }
    let made = delivery.localInterrupts.makeVector()
    vector = made
    return made
  }

  func event() -> Int32? {
    state.withLock { _ in
      isSignalledByOthers = true
      return madeVector.event
    }
  }

  override func send(_ resolved: InterruptMessage) { vector?.signal() }
}

/// The route of an IOAPIC pin.
final class PinRoute: MessageRoute, InterruptRoute, @unchecked Sendable {
  private let pin: Int

  fileprivate init(delivery: InterruptDelivery, requester: Requester, pin: Int) {
    self.pin = pin
    super.init(delivery: delivery, requester: requester)
  }

  private static func isLevelTriggered(_ message: InterruptMessage) -> Bool { message.data[bit: 15] }

  override fileprivate func install(_ resolved: InterruptMessage?) {
    // A pin that sends nothing at the moment keeps its route: Linux masks the SCI's pin at each interrupt, and two
    // rewrites of the kernel's table for each of them cost too much. `ends` ignores the route of such a pin.
    guard let resolved else { return }
    delivery.localInterrupts.setLevelTriggered(pin: pin, Self.isLevelTriggered(resolved) ? resolved : nil)
  }

  /// Removes the pin's route from the kernel's table, after the IOAPIC was reset.
  func reset() { delivery.localInterrupts.setLevelTriggered(pin: pin, nil) }

  override fileprivate func send(_ resolved: InterruptMessage) { delivery.localInterrupts.send(resolved) }

  /// Returns whether the end of an interrupt with this vector ends the level-triggered interrupt of this pin.
  func ends(vector: UInt8) -> Bool {
    state.withLock { state in
      guard let resolved = state.resolved else { return false }
      return Self.isLevelTriggered(resolved) && UInt8(truncatingIfNeeded: resolved.data) == vector
    }
  }
}

/// The route of a unit's own event, whose message is not remapped.
private final class UnremappedRoute: InterruptRoute {
  private let delivery: InterruptDelivery
  private let message = Mutex<InterruptMessage?>(nil)

  init(delivery: InterruptDelivery) { self.delivery = delivery }

  func set(_ new: InterruptMessage?) { message.withLock { $0 = new } }

  func signal() {
    if let message = message.withLock({ $0 }) { delivery.sendUnremapped(message) }
  }
}
