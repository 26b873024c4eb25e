import Hardware

/// The route of an IOAPIC pin.
final class PinRoute: MessageRoute, InterruptRoute, @unchecked Sendable {
  private let pin: Int

  init(delivery: InterruptDelivery, requester: Requester, pin: Int) {
    self.pin = pin
    super.init(delivery: delivery, requester: requester)
  }

  private static func isLevelTriggered(_ message: InterruptMessage) -> Bool { message.data[bit: 15] }

  override func install(_ resolved: InterruptMessage?) {
    // A pin that sends nothing at the moment keeps its route: Linux masks the SCI's pin at each interrupt, and two
    // rewrites of the kernel's table per interrupt would cost too much. `ends` ignores the route of such a pin.
    guard let resolved else { return }
    delivery.localInterrupts.setLevelTriggered(pin: pin, Self.isLevelTriggered(resolved) ? resolved : nil)
  }

  /// Removes the pin's route from the kernel's table, after the IOAPIC was reset.
  func reset() { delivery.localInterrupts.setLevelTriggered(pin: pin, nil) }

  override func send(_ resolved: InterruptMessage) { delivery.localInterrupts.send(resolved) }

  /// Returns whether the end of an interrupt with this vector ends the level-triggered interrupt of this pin.
  func ends(vector: UInt8) -> Bool {
    state.withLock { state in
      guard let resolved = state.resolved else { return false }
      return Self.isLevelTriggered(resolved) && UInt8(truncatingIfNeeded: resolved.data) == vector
    }
  }
}
