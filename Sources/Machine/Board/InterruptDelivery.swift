import Hardware
import Synchronization
import VTd

/// How interrupts reach the local APICs: from a source's message through the remapper, if there is one, to the
/// accelerator. A route is worked out when it is set and when the guest invalidates what it was made from, not at
/// every interrupt.
///
/// A message is a write by DMA (PCI Express Base 6.1.4): outside the interrupt address range it ends in memory.
///
/// Lock order: a source's lock, then its route's, then the unit's and the accelerator's.
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

  /// Has every message pass this unit's interrupt remapping from now on.
  func remap(by unit: TranslationUnit) {
    self.unit.withLock { $0 = unit }
    unit.addObserver(self)
  }

  /// Takes `remap` back: the two hold each other until then.
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

  /// A route for a pin of the IOAPIC.
  func makePinRoute(pin: Int, requester: Requester) -> PinRoute {
    track(PinRoute(delivery: self, requester: requester, pin: pin))
  }

  /// A route past the remapper: the unit's own events.
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

  /// A request goes by a route that was resolved before.
  fileprivate func note(_ message: InterruptMessage, resolved: InterruptMessage, from requester: Requester) {
    unit.withLock { $0 }?.note(message, remappedTo: resolved, from: requester.id)
  }

  /// How the messages of a function reach memory.
  fileprivate func makePort(for requester: Requester) -> any DMAPort {
    if let unit = unit.withLock({ $0 }) { return unit.makePort(for: requester) }
    return DirectDMAPort(memory: memory, requester: requester)
  }

  /// Sends one of the unit's own messages.
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

  /// A device's DMA write to 0xFEEx_xxxx.
  func send(_ message: InterruptMessage, from requester: RequesterID) {
    let source = Requester(id: requester)
    if let resolved = resolve(message, from: source, recordFault: true) { localInterrupts.send(resolved) }
  }
}

extension InterruptMessage {
  /// Whether it is an interrupt request at all: a write to 0xFEEx_xxxx (VT-d 3.15).
  fileprivate var isInterrupt: Bool { address >> 20 == 0xfee }

  /// The interrupt that an event of the unit is; nil for an event that its address sends to memory.
  ///
  /// Bits 63:32 are FEUADDR, IEUADDR or PEUADDR (VT-d 11.4.7, 11.4.9 and 11.4.11). Its bits 31:8 are those of an x2APIC
  /// destination, as KVM takes them; they do not say where the write goes. Its bits 7:0 are reserved.
  fileprivate var eventInterrupt: InterruptMessage? {
    guard address & 0xfff0_0000 == 0xfee0_0000 else { return nil }
    return InterruptMessage(address: address & ~(0xff << 32), data: data)
  }
}

/// A route whose message passes the remapper.
class MessageRoute: @unchecked Sendable {
  fileprivate struct State {
    var message: InterruptMessage?
    /// What the remapper made of it; nil where it refused, or where there is no message.
    var resolved: InterruptMessage?
    /// What the message is written through, if it goes to memory.
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

  /// Works the route out again: what it was made from may have changed.
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
        // What is refused there, and recorded, is lost.
        try? port.storeUInt32(message.data, at: message.address)
      } else if let resolved = delivery.resolve(message, from: requester, recordFault: true) {
        // The remapper refuses it again, and records that now; or it has come to pass.
        delivery.localInterrupts.send(resolved)
      }
    }
  }

  /// Brings the accelerator in step; called with the route's lock held, as `send` is.
  fileprivate func install(_ resolved: InterruptMessage?) {}

  /// - Parameter resolved: what was installed last.
  fileprivate func send(_ resolved: InterruptMessage) {}
}

/// A route whose message the kernel sends for others: for the device that VFIO passes through.
protocol EventRoute: InterruptRoute {
  /// The eventfd that sends the message; while there is none to send, signals wait. nil where the host has none to
  /// give. The same at every call, open as long as the route.
  func event() -> Int32?
}

/// A vector of MSI or MSI-X.
private final class VectorRoute: MessageRoute, EventRoute, @unchecked Sendable {
  /// Made when the vector is used first; most never are. Under the route's lock.
  private var vector: (any MessageVector)?
  /// Others signal it, who do not ask whether there is a message. Under the route's lock.
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

/// A pin of the IOAPIC.
final class PinRoute: MessageRoute, InterruptRoute, @unchecked Sendable {
  private let pin: Int

  fileprivate init(delivery: InterruptDelivery, requester: Requester, pin: Int) {
    self.pin = pin
    super.init(delivery: delivery, requester: requester)
  }

  private static func isLevelTriggered(_ message: InterruptMessage) -> Bool { message.data[bit: 15] }

  override fileprivate func install(_ resolved: InterruptMessage?) {
    // A pin that sends nothing for now keeps its route. Linux masks the SCI's pin at each interrupt, and the kernel's
    // table costs too much to be rewritten twice for that. `ends` ignores the end of a vector that the pin does not send.
    guard let resolved else { return }
    delivery.localInterrupts.setLevelTriggered(pin: pin, Self.isLevelTriggered(resolved) ? resolved : nil)
  }

  /// Takes the pin's route away, after the IOAPIC was reset.
  func reset() { delivery.localInterrupts.setLevelTriggered(pin: pin, nil) }

  override fileprivate func send(_ resolved: InterruptMessage) { delivery.localInterrupts.send(resolved) }

  /// Whether this is the level-triggered interrupt that a local APIC has ended with this vector.
  func ends(vector: UInt8) -> Bool {
    state.withLock { state in
      guard let resolved = state.resolved else { return false }
      return Self.isLevelTriggered(resolved) && UInt8(truncatingIfNeeded: resolved.data) == vector
    }
  }
}

/// A message that is sent as it is.
private final class UnremappedRoute: InterruptRoute {
  private let delivery: InterruptDelivery
  private let message = Mutex<InterruptMessage?>(nil)

  init(delivery: InterruptDelivery) { self.delivery = delivery }

  func set(_ new: InterruptMessage?) { message.withLock { $0 = new } }

  func signal() {
    if let message = message.withLock({ $0 }) { delivery.sendUnremapped(message) }
  }
}
