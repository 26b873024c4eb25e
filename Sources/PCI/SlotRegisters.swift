import Hardware

/// The registers of a slot whose device comes and goes: Slot Capabilities, Slot Control and Slot Status (PCI Express Base
/// 7.5.3.9 to 7.5.3.11, with 6.7 for what they do). A plain value: writes go in, and what is to be done comes out.
///
/// The native way has an attention button, both indicators and a power controller; no latch, no interlock, no power
/// faults. Hot-Plug Surprise is clear: Linux treats a link that goes down as a removal with or without it. A slot of the
/// ACPI way is hot-plug capable, so that operating systems leave room below the port, and always powered.
///
/// Inserting a device never presses the button: on a slot that software just switches off or on, that would cancel it.
struct SlotRegisters: Sendable {
  /// What the owner has to do after a write by software.
  enum Outcome: Sendable {
    case nothing
    /// The device in the slot is switched off for good.
    case eject
    /// Software took the wish to remove the device, and switched the slot on again.
    case refuse
  }

  /// Events of Slot Status, by its layout.
  struct Events: OptionSet {
    let rawValue: UInt16

    static let attentionButtonPressed = Events(rawValue: 1 << 0)
    static let presenceDetectChanged = Events(rawValue: 1 << 3)
    static let commandCompleted = Events(rawValue: 1 << 4)
    static let linkStateChanged = Events(rawValue: 1 << 8)
    /// RW1C.
    static let all: Events = [.attentionButtonPressed, .presenceDetectChanged, .commandCompleted, .linkStateChanged]
  }

  /// Fields and bits of Slot Control.
  enum Control {
    static let attentionButtonPressedEnable = 0
    static let hotPlugInterruptEnable = 5
    static let attentionIndicator = 6...7
    static let powerIndicator = 8...9
    /// Set for off.
    static let powerController = 10
    static let linkStateChangedEnable = 12
    /// Enables that stand where Slot Status has their events.
    static let eventEnables: UInt16 = 0x19
  }

  /// Values of an indicator's field.
  enum Indicator: UInt16 {
    case reserved = 0
    case on = 1
    case blinking = 2
    case off = 3
  }

  /// A wish to have the slot emptied.
  private enum Removal {
    case none
    /// The button waits until the slot is on.
    case deferred
    case pressed
    /// Software blinks: it takes another press as a change of mind.
    case answered
  }

  let way: HotplugWay
  private(set) var control: UInt16 = 0
  private(set) var events: Events = []
  /// Presence Detect State.
  private(set) var isPresent = false
  /// As Link Status reports it.
  private(set) var isLinkActive = false
  private var removal = Removal.none
  /// Software gave the command to power the slot on since the device came.
  private var isNoticed = false
  /// Then software set the indicator on: switching the slot off ejects the device. One that takes the place of another
  /// that was pulled out must outlast the commands that are meant for the other one.
  private var isInUse = false
  /// The owner has been told to take the device.
  private var isEjected = false

  init(_ way: HotplugWay) {
    self.way = way
    reset(isPresent: false)
  }

  /// Slot Capabilities without the slot's number.
  static func capabilities(_ way: HotplugWay) -> UInt32 {
    switch way {
    // Attention Button, Power Controller, both indicators, Hot-Plug Capable.
    case .native: 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6
    // Hot-Plug Capable; no command, so No Command Completed Support.
    case .acpi: 1 << 6 | 1 << 18
    }
  }

  /// RW bits of Slot Control: what there is an element for.
  private var writable: UInt16 { way == .native ? 0x17f9 : 0x1028 }

  /// A full slot is on with its indicator on, an empty one is off. Who is in the slot stays; events and wishes go.
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

  // MARK: What it says

  var status: UInt16 { events.rawValue | (isPresent ? ExpressCapability.presenceDetect : 0) }

  /// Whether what is in the slot has power.
  var isPowered: Bool { !control[bit: Control.powerController] && !isEjected }

  private var powerIndicator: Indicator {
    // Two bits have four values.
    Indicator(rawValue: control[bits: Control.powerIndicator]) ?? .reserved
  }

  private var isOff: Bool { control[bit: Control.powerController] && powerIndicator == .off }

  /// Whether an enabled event is there (6.7.3.4): the level of INTx, while MSI is sent when this becomes true.
  var interrupts: Bool {
    var enables = control & Control.eventEnables
    if control[bit: Control.linkStateChangedEnable] { enables |= Events.linkStateChanged.rawValue }
    return control[bit: Control.hotPlugInterruptEnable] && enables & events.rawValue != 0
  }

  // MARK: Writes by software

  /// - Parameters:
  ///   - value: Slot Control in the lower half, Slot Status in the upper.
  ///   - mask: the bits of the bytes that are written.
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
    return commanded(before)
  }

  /// Draws the conclusions from a command.
  private mutating func commanded(_ before: SlotRegisters) -> Outcome {
    // A driver clears the button's event as it starts: a press before that must be repeated.
    if removal == .pressed, control[bit: Control.attentionButtonPressedEnable],
      !before.control[bit: Control.attentionButtonPressedEnable]
    {
      events.insert(.attentionButtonPressed)
    }
    if isPowered, !before.isPowered { isNoticed = true }
    guard isPresent, !isEjected else { return .nothing }
    if isOff { return before.isOff ? .nothing : switchedOff() }
    // A write that leaves both as they were says nothing of a device that came meanwhile.
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
    // Linux drops the events of the second that it waits after switching off. It has not seen this device.
    if !isNoticed { announce() }
    return .nothing
  }

  private mutating func press() {
    removal = .pressed
    events.insert(.attentionButtonPressed)
  }

  /// Says that the device is there. Without power the link stays down, but its event is said, too: Linux enables that of
  /// presence only for slots without an attention button.
  private mutating func announce() { events.formUnion([.presenceDetectChanged, .linkStateChanged]) }

  // MARK: What happens to the slot

  /// A device is in the slot.
  mutating func inserted() {
    guard !isPresent else { return }
    isPresent = true
    isInUse = false
    isNoticed = false
    removal = .none
    announce()
  }

  /// The slot is empty.
  mutating func emptied() {
    guard isPresent else { return }
    isPresent = false
    isInUse = false
    isEjected = false
    removal = .none
    events.insert(.presenceDetectChanged)
  }

  /// Data Link Layer Link Active is another now, or not.
  mutating func linkBecame(active: Bool) {
    guard active != isLinkActive else { return }
    isLinkActive = active
    events.insert(.linkStateChanged)
  }

  /// Asks software to give up the device, where software must be asked.
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
