import Hardware
import Synchronization
import VTd

/// Delivers interrupts to the local APICs: from the message of a source, through the remapper, if there is one, to the
/// accelerator. A route is resolved when its message is set and when the guest invalidates the route's table entries,
/// not at every interrupt.
///
/// A message is a DMA write (PCI Express Base 6.1.4). If its address is outside the interrupt address range, it goes to
/// memory.
///
/// Lock order: the source's lock, then the lock of its route, then those of the unit and the accelerator.
final class InterruptDelivery: InterruptRouter, InvalidationObserver, MessageSink {
  let localInterrupts: any LocalInterrupts
  private let memory: any PhysicalMemory
  private let unit = Mutex<RemappingUnit?>(nil)
  private let routes = Mutex<[WeakRoute]>([])

  private struct WeakRoute {
    weak var route: MessageRoute?
  }

  init(localInterrupts: any LocalInterrupts, memory: any PhysicalMemory) {
    self.localInterrupts = localInterrupts
    self.memory = memory
  }

  /// Sends every message through the interrupt remapping of this unit from now on.
  func remap(by unit: RemappingUnit) {
    self.unit.withLock { $0 = unit }
    unit.addObserver(self, for: .interruptRemapping)
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

  /// Returns the message after remapping; nil if the remapper blocks it.
  /// - Parameter recordFault: true for a request that is being made now: the unit counts and traces the request, and
  ///   records a fault if it blocks the request.
  func resolve(
    _ message: InterruptMessage, from requester: Requester, recordFault: Bool
  ) -> InterruptMessage? {
    guard let unit = unit.withLock({ $0 }) else { return message }
    switch unit.remap(message, from: requester.id, recordFault: recordFault) {
    case .deliver(let remapped): return remapped
    case .blocked: return nil
    }
  }

  /// Counts and traces a request that uses a route resolved earlier.
  func note(_ message: InterruptMessage, resolved: InterruptMessage, from requester: Requester) {
    unit.withLock { $0 }?.note(message, remappedTo: resolved, from: requester.id)
  }

  /// Makes the port by which a function's messages reach memory.
  func makePort(for requester: Requester) -> any DMAPort {
    if let unit = unit.withLock({ $0 }) { return unit.makePort(for: requester) }
    return DirectDMAPort(memory: memory, requester: requester)
  }

  /// Sends the message of one of the unit's own events.
  func sendUnremapped(_ message: InterruptMessage) {
    if let interrupt = message.eventInterrupt {
      localInterrupts.send(interrupt)
    } else {
      _ = memory.storeUInt32(message.data, at: message.address)
    }
  }

  func invalidated(_ invalidations: [Invalidation]) {
    for weak in routes.withLock({ $0 }) { weak.route?.reconsider() }
  }

  /// Delivers a device's DMA write to 0xFEEx_xxxx.
  func send(_ message: InterruptMessage, from requester: RequesterID) {
    let source = Requester(id: requester)
    if let resolved = resolve(message, from: source, recordFault: true) { localInterrupts.send(resolved) }
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

extension InterruptMessage {
  /// The interrupt request of a unit's event; nil if the event's address is in memory.
  ///
  /// Bits 63:32 of the address are the register FEUADDR, IEUADDR or PEUADDR (VT-d 11.4.7, 11.4.9 and 11.4.11). Bits
  /// 31:8 of that register are bits 31:8 of an x2APIC destination, which KVM expects in the same place. They are not a
  /// part of the address that is written. Bits 7:0 of the register are reserved.
  fileprivate var eventInterrupt: InterruptMessage? {
    guard address & 0xfff0_0000 == 0xfee0_0000 else { return nil }
    return InterruptMessage(address: address & ~(0xff << 32), data: data)
  }
}
