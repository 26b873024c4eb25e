import Hardware

/// The registers of a slot with hotplug: Slot Capabilities, Slot Control and Slot Status (PCI Express Base 7.5.3.9 to
/// 7.5.3.11; section 6.7 describes their behaviour). A plain value: it takes writes and returns the actions for its
/// owner.
///
/// A slot with native hotplug has an attention button, both indicators and a power controller, but no latch, interlock
/// or power faults. Hot-Plug Surprise is clear, because Linux treats a link that goes down as a removal in any case. A
/// slot with ACPI hotplug is always powered. It is hot-plug capable, so that operating systems leave room below the
/// port.
///
/// An insertion never presses the button. While software switches the slot on or off, a press would cancel that
/// command.
struct SlotRegisters: Sendable {
  /// The action for the owner after a write by software.
  enum Outcome: Sendable {
    case nothing
    /// Software switched off the device in the slot: the owner ejects it.
    case eject
    /// Software accepted a request to remove the device, and then switched the slot on again.
    case refuse
  }

  /// The event bits of Slot Status, at their positions in that register.
  struct Events: OptionSet {
    let rawValue: UInt16

    static let attentionButtonPressed = Events(rawValue: 1 << 0)
    static let presenceDetectChanged = Events(rawValue: 1 << 3)
    static let commandCompleted = Events(rawValue: 1 << 4)
    static let linkStateChanged = Events(rawValue: 1 << 8)
    /// The events that the slot has, whose bits are RW1C.
    static let all: Events = [.attentionButtonPressed, .presenceDetectChanged, .commandCompleted, .linkStateChanged]
  }

  /// Fields and bits of Slot Control.
  enum Control {
    static let attentionButtonPressedEnable = 0
    static let hotPlugInterruptEnable = 5
    static let attentionIndicator = 6...7
    static let powerIndicator = 8...9
    /// The bit that switches the power off when it is set.
    static let powerController = 10
    static let linkStateChangedEnable = 12
    /// The enables that have the same bit as their events in Slot Status.
    static let eventEnables: UInt16 = 0x19
  }

  /// Values of an indicator's field.
  enum Indicator: UInt16 {
    case reserved = 0
    case on = 1
    case blinking = 2
    case off = 3
  }

  /// The state of a request to remove the device.
  private enum Removal {
    case none
    /// The button will be pressed when the slot is on.
    case deferred
    case pressed
    /// The power indicator blinks: software would take another press as a cancellation.
    case answered
  }

  let way: HotplugWay
  private(set) var control: UInt16 = 0
  private(set) var events: Events = []
  /// Presence Detect State.
  private(set) var isPresent = false
  /// Data Link Layer Link Active of Link Status.
  private(set) var isLinkActive = false
  private var removal = Removal.none
  /// Whether software has commanded power on since the insertion of the device.
  private var isNoticed = false
  /// Whether software has then set the indicator on. Only in this state does switching the slot off eject the device,
  /// because a device inserted after a surprise removal must ignore commands that software meant for the old one.
  private var isInUse = false
  /// Whether `eject` was returned for the device.
  private var isEjected = false

  init(_ way: HotplugWay) {
    self.way = way
    reset(isPresent: false)
  }

  /// Returns Slot Capabilities without the slot's number.
  static func capabilities(_ way: HotplugWay) -> UInt32 {
    switch way {
    // Attention Button, Power Controller, both indicators, Hot-Plug Capable.
    case .native: 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6
    // Hot-Plug Capable; No Command Completed Support, because there are no commands.
    case .acpi: 1 << 6 | 1 << 18
    }
  }

  /// The RW bits of Slot Control: those of the elements that the slot has.
  private var writable: UInt16 { way == .native ? 0x17f9 : 0x1028 }

  /// Resets the slot. An occupied slot and its power indicator are on, an empty slot is off. Drops events and a request
  /// to remove the device.
  mutating func reset(isPresent: Bool) {
    self.isPresent = isPresent
    isLinkActive = isPresent
    events = []
    removal = .none
    isInUse = isPresent
    isNoticed = isPresent
    isEjected = false
    control = 0
    guard way == .native else { return }
    control[bits: Control.attentionIndicator] = Indicator.off.rawValue
    control[bits: Control.powerIndicator] = (isPresent ? Indicator.on : .off).rawValue
    control[bit: Control.powerController] = !isPresent
  }

  // MARK: State

  var status: UInt16 { events.rawValue | (isPresent ? ExpressCapability.presenceDetect : 0) }

  /// Whether the device in the slot has power.
  var isPowered: Bool { !control[bit: Control.powerController] && !isEjected }

  private var powerIndicator: Indicator {
    // Never nil: the two bits have four values.
    Indicator(rawValue: control[bits: Control.powerIndicator]) ?? .reserved
  }

  private var isOff: Bool { control[bit: Control.powerController] && powerIndicator == .off }

  /// Whether an enabled event is set (6.7.3.4). This is the level of INTx; an MSI is sent when it becomes true.
  var interrupts: Bool {
    var enables = control & Control.eventEnables
    if control[bit: Control.linkStateChangedEnable] { enables |= Events.linkStateChanged.rawValue }
    return control[bit: Control.hotPlugInterruptEnable] && enables & events.rawValue != 0
  }

  // MARK: Writes by software

  /// Writes Slot Control and Slot Status.
  /// - Parameters:
  ///   - value: Slot Control in the lower half, Slot Status in the upper half.
  ///   - mask: the bits of the written bytes.
  mutating func write(_ value: UInt32, mask: UInt32) -> Outcome {
    let cleared = UInt16(truncatingIfNeeded: (value & mask) >> 16)
    events.subtract(Events(rawValue: cleared).intersection(.all))
    let written = UInt16(truncatingIfNeeded: mask)
    guard written != 0 else { return .nothing }
    let before = self
    let changed = written & writable
    control = control & ~changed | UInt16(truncatingIfNeeded: value) & changed
    guard way == .native else { return .nothing }
    events.insert(.commandCompleted)
    return applyCommand(before)
  }

  /// Acts on a command that software wrote.
  private mutating func applyCommand(_ before: SlotRegisters) -> Outcome {
    // A driver clears the button's event when it starts. Repeat a press that came before.
    if removal == .pressed, control[bit: Control.attentionButtonPressedEnable],
      !before.control[bit: Control.attentionButtonPressedEnable]
    {
      events.insert(.attentionButtonPressed)
    }
    if isPowered, !before.isPowered { isNoticed = true }
    guard isPresent, !isEjected else { return .nothing }
    if isOff { return before.isOff ? .nothing : switchedOff() }
    // A write that changes neither power nor indicator does not concern a device that was inserted meanwhile.
    guard isPowered, !before.isPowered || powerIndicator != before.powerIndicator else { return .nothing }
    switch powerIndicator {
    case .on, .reserved:
      if isNoticed { isInUse = true }
      if removal == .deferred { press() }
      if removal == .answered {
        removal = .none
        return .refuse
      }
    case .blinking: if removal == .pressed { removal = .answered }
    case .off: break
    }
    return .nothing
  }

  private mutating func switchedOff() -> Outcome {
    if isInUse || removal != .none {
      isInUse = false
      removal = .none
      isEjected = true
      return .eject
    }
    // After Linux switches a slot off, it waits a second and drops the events of that second, so it has missed this
    // device.
    if !isNoticed { announce() }
    return .nothing
  }

  private mutating func press() {
    removal = .pressed
    events.insert(.attentionButtonPressed)
  }

  /// Sets the events of an insertion. Without power the link stays down, but its event is set as well, because Linux
  /// enables the presence event only for slots without an attention button.
  private mutating func announce() { events.formUnion([.presenceDetectChanged, .linkStateChanged]) }

  // MARK: Actions of the board

  mutating func inserted() {
    guard !isPresent else { return }
    isPresent = true
    isInUse = false
    isNoticed = false
    removal = .none
    announce()
  }

  mutating func emptied() {
    guard isPresent else { return }
    isPresent = false
    isInUse = false
    isEjected = false
    removal = .none
    events.insert(.presenceDetectChanged)
  }

  /// Updates Data Link Layer Link Active.
  mutating func linkBecame(active: Bool) {
    guard active != isLinkActive else { return }
    isLinkActive = active
    events.insert(.linkStateChanged)
  }

  /// Asks software to release the device, if software uses it.
  mutating func requestRemoval() -> RemovalAnswer {
    guard isPresent, !isEjected, !isOff else { return .unpowered }
    switch removal {
    case .none: break
    case .deferred: return .deferred
    case .pressed, .answered: return .busy
    }
    let isOn = isPowered && (isInUse || powerIndicator == .on || powerIndicator == .reserved)
    guard isOn else {
      removal = .deferred
      return .deferred
    }
    if powerIndicator == .blinking { return .busy }
    press()
    return .asked
  }
}
