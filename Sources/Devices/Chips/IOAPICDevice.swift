import Hardware
import Synchronization

/// Connects an `IOAPIC` to the machine: to its page of registers, to the lines of its pins, and to a route from each
/// pin.
///
/// Lock order: the chip's lock, then a route's. A device may hold its own lock while it drives a line. The
/// end-of-interrupt handler is called without the chip's lock, so it may drive lines.
public final class IOAPICDevice: BusDevice {
  public static let regionSize: UInt64 = 0x1000

  private struct State {
    var chip: IOAPIC
    /// The number of lines that assert each pin.
    var drivers = [Int](repeating: 0, count: IOAPIC.pinCount)
    /// The message of each route. A route is set only on a change, because setting it is expensive.
    var messages = [InterruptMessage?](repeating: nil, count: IOAPIC.pinCount)
    var observer: (@Sendable (Int, Bool) -> Void)?
  }

  private let state: Mutex<State>
  private let routes: [any InterruptRoute]
  private let identification: UInt8
  private let onEndOfInterrupt: (@Sendable (PinSet) -> Void)?

  /// - Parameters:
  ///   - routes: one for each pin, from pin 0, without a message.
  ///   - identification: the APIC ID in the MADT.
  ///   - onEndOfInterrupt: called with the level-triggered pins whose interrupt the guest has ended, by an EOI at a
  ///     local APIC or by the EOI register. A source that bypasses this chip then checks its line again.
  public init(
    routes: [any InterruptRoute], identification: UInt8 = 0,
    onEndOfInterrupt: (@Sendable (PinSet) -> Void)? = nil
  ) {
    precondition(routes.count == IOAPIC.pinCount, "an I/O APIC has a route for each of its 24 pins")
    self.routes = routes
    self.identification = identification
    self.onEndOfInterrupt = onEndOfInterrupt
    state = Mutex(State(chip: IOAPIC(identification: identification)))
  }

  /// Makes a new line to a pin. The pin is asserted while any of its lines is. A line deasserts when it is released.
  /// - Parameter pin: 0 to 23.
  public func line(_ pin: Int) -> any InterruptLine {
    precondition((0..<IOAPIC.pinCount).contains(pin), "an I/O APIC has pins 0 to 23")
    return Line(controller: self, pin: pin)
  }

  /// Sets the observer of the pins' levels; nil removes it.
  /// - Parameter observer: called with a pin and its new level, in the order of the changes. The chip's lock is held,
  ///   so it must not call this object.
  public func observePins(_ observer: (@Sendable (_ pin: Int, _ asserted: Bool) -> Void)?) {
    state.withLock { $0.observer = observer }
  }

  /// - Parameter pin: 0 to 23.
  public func entry(_ pin: Int) -> RedirectionEntry { state.withLock { $0.chip.entry(pin) } }

  /// Returns the level-triggered pins that have this vector in their entries, masked or not.
  public func levelTriggeredPins(vector: UInt8) -> PinSet {
    state.withLock { $0.chip.levelTriggeredPins(vector: vector) }
  }

  /// Handles an EOI of this vector at a local APIC (KVM_EXIT_IOAPIC_EOI). With interrupt remapping the vector may
  /// differ from the entry's; the guest then ends the interrupt through the EOI register.
  public func endOfInterrupt(vector: UInt8) {
    update { chip, effects in chip.endOfInterrupt(vector: vector, effects: &effects) }
  }

  /// - Parameter pin: 0 to 23.
  public func endOfInterrupt(pin: Int) {
    update { chip, effects in chip.endOfInterrupt(pin: pin, effects: &effects) }
  }

  /// Resets the registers. The lines keep the levels that their devices drive.
  public func reset() {
    update { chip, effects in chip.reset(identification: identification, effects: &effects) }
  }

  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    state.withLock { $0.chip.read(offset: offset, width: width) }
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    update { chip, effects in chip.write(offset: offset, width: width, value: value, effects: &effects) }
  }

  private func update(_ body: (inout IOAPIC, inout IOAPIC.Effects) -> Void) {
    let ended = state.withLock { state in
      var effects = IOAPIC.Effects()
      body(&state.chip, &effects)
      carryOut(effects, &state)
      return effects.ended
    }
    if !ended.isEmpty { onEndOfInterrupt?(ended) }
  }

  private func drive(_ pin: Int, asserted: Bool) {
    state.withLock { state in
      let wasAsserted = state.drivers[pin] > 0
      state.drivers[pin] += asserted ? 1 : -1
      if let observer = state.observer, (state.drivers[pin] > 0) != wasAsserted { observer(pin, asserted) }
      var effects = IOAPIC.Effects()
      state.chip.setPin(pin, asserted: state.drivers[pin] > 0, effects: &effects)
      carryOut(effects, &state)
    }
  }

  private func carryOut(_ effects: IOAPIC.Effects, _ state: inout State) {
    for pin in effects.rerouted {
      let message = state.chip.message(pin)
      guard message != state.messages[pin] else { continue }
      state.messages[pin] = message
      routes[pin].set(message)
    }
    for pin in effects.signalled { routes[pin].signal() }
  }

  private final class Line: InterruptLine {
    private let controller: IOAPICDevice
    private let pin: Int
    private let asserted = Atomic<Bool>(false)

    init(controller: IOAPICDevice, pin: Int) {
      self.controller = controller
      self.pin = pin
    }

    deinit { set(false) }

    func set(_ new: Bool) {
      if asserted.exchange(new, ordering: .acquiringAndReleasing) != new { controller.drive(pin, asserted: new) }
    }
  }
}
