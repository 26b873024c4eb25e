import Hardware
import KVM
import Linux
import Synchronization
import VTd

/// How interrupts reach the local APICs: from a source's message through the remapper, if there is one, into the
/// kernel's routes. A route is worked out when it is set and when the guest invalidates what it was made from, not at
/// every interrupt.
///
/// Lock order: a source's lock, then its route's, then the unit's and the kernel's table.
final class InterruptDelivery: InterruptRouter, InvalidationObserver, MessageSink {
  let machine: VirtualMachine
  private let unit = Mutex<TranslationUnit?>(nil)
  private let routes = Mutex<[WeakRoute]>([])

  private struct WeakRoute {
    weak var route: MessageRoute?
  }

  init(machine: VirtualMachine) { self.machine = machine }

  /// Has every message pass this unit's interrupt remapping from now on.
  func remap(by unit: TranslationUnit) {
    self.unit.withLock { $0 = unit }
    unit.addObserver(self)
  }

  func makeRoute(for requester: Requester) -> any InterruptRoute {
    track(EventRoute(delivery: self, requester: requester))
  }

  /// A route for a pin of the IOAPIC.
  func makePinRoute(pin: Int, requester: Requester) -> PinRoute {
    track(PinRoute(delivery: self, requester: requester, pin: pin))
  }

  /// A route past the remapper: the unit's own events.
  func makeUnremappedRoute() -> any InterruptRoute { UnremappedRoute(machine: machine) }

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
    if let resolved = resolve(message, from: source, recordFault: true) {
      machine.signal(address: resolved.address, data: resolved.data)
    }
  }
}

/// A route whose message passes the remapper.
class MessageRoute: @unchecked Sendable {
  fileprivate struct State {
    var message: InterruptMessage?
    /// What the remapper made of it; nil where it refused, or where there is no message.
    var resolved: InterruptMessage?
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
      update(&state)
    }
  }

  /// Works the route out again: what it was made from may have changed.
  fileprivate func reconsider() { state.withLock { update(&$0) } }

  private func update(_ state: inout State) {
    let resolved = state.message.flatMap { delivery.resolve($0, from: requester, recordFault: false) }
    guard resolved != state.resolved else { return }
    state.resolved = resolved
    install(resolved)
  }

  /// Brings the kernel in step; called with the route's lock held.
  fileprivate func install(_ resolved: InterruptMessage?) {}

  /// Sends a message that could not be resolved before: the remapper refuses it now, and records that, or it has
  /// come to pass.
  fileprivate func sendUnresolved(_ message: InterruptMessage) {
    if let resolved = delivery.resolve(message, from: requester, recordFault: true) {
      delivery.machine.signal(address: resolved.address, data: resolved.data)
    }
  }
}

/// A vector of MSI or MSI-X: an eventfd that the kernel turns into the message (irqfd).
private final class EventRoute: MessageRoute, InterruptRoute, @unchecked Sendable {
  private final class Kernel {
    let event: EventDescriptor
    let gsi: UInt32
    var attached = false

    init(gsi: UInt32) throws(SystemError) {
      event = try EventDescriptor()
      self.gsi = gsi
    }
  }

  /// Made when the vector is used first; most never are. Under the route's lock.
  private var kernel: Kernel?

  deinit {
    guard let kernel else { return }
    if kernel.attached { try? delivery.machine.routing.detach(kernel.event.rawValue, from: kernel.gsi) }
    delivery.machine.routing.free(kernel.gsi)
  }

  override func install(_ resolved: InterruptMessage?) {
    guard let resolved else { return }
    let routing = delivery.machine.routing
    if kernel == nil {
      let gsi = routing.allocate()
      kernel = try? Kernel(gsi: gsi)
      if kernel == nil { routing.free(gsi) }
    }
    guard let kernel else { return }
    do {
      try routing.set(kernel.gsi, address: resolved.address, data: resolved.data)
      if !kernel.attached { try routing.attach(kernel.event.rawValue, to: kernel.gsi) }
      kernel.attached = true
    } catch {
      // The kernel's table is full: `signal` then sends each message by a call of its own.
      if kernel.attached { try? routing.detach(kernel.event.rawValue, from: kernel.gsi) }
      kernel.attached = false
    }
  }

  func signal() {
    state.withLock { state in
      guard let message = state.message else { return }
      guard let resolved = state.resolved else { return sendUnresolved(message) }
      if let kernel, kernel.attached {
        kernel.event.signal()
      } else {
        delivery.machine.signal(address: resolved.address, data: resolved.data)
      }
    }
  }
}

/// A pin of the IOAPIC. Level-triggered, its route stands in the kernel's table under the pin's number, so that the
/// end of the interrupt comes back as an exit.
final class PinRoute: MessageRoute, InterruptRoute, @unchecked Sendable {
  private let pin: UInt32

  fileprivate init(delivery: InterruptDelivery, requester: Requester, pin: Int) {
    self.pin = UInt32(pin)
    super.init(delivery: delivery, requester: requester)
  }

  private static func isLevelTriggered(_ message: InterruptMessage) -> Bool { message.data[bit: 15] }

  override fileprivate func install(_ resolved: InterruptMessage?) {
    if let resolved, Self.isLevelTriggered(resolved) {
      try? delivery.machine.routing.set(pin, address: resolved.address, data: resolved.data)
    } else {
      delivery.machine.routing.clear(pin)
    }
  }

  func signal() {
    state.withLock { state in
      guard let message = state.message else { return }
      guard let resolved = state.resolved else { return sendUnresolved(message) }
      delivery.machine.signal(address: resolved.address, data: resolved.data)
    }
  }

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
  private let machine: VirtualMachine
  private let message = Mutex<InterruptMessage?>(nil)

  init(machine: VirtualMachine) { self.machine = machine }

  func set(_ new: InterruptMessage?) { message.withLock { $0 = new } }

  func signal() {
    guard let message = message.withLock({ $0 }) else { return }
    machine.signal(address: message.address, data: message.data)
  }
}
