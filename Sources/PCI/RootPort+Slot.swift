import Hardware

/// The hotplug method below ports. The whole machine uses one method, which `_OSC` grants to the guest.
public enum HotplugWay: Hashable, Sendable, CaseIterable {
  /// ACPI's `Notify` and `_EJ0` (ACPI 6.5, sections 5.6.6 and 6.3.3): a separate controller handles all slots.
  case acpi
  /// PCI Express native: each port has an attention button, indicators and a power controller (PCI Express Base,
  /// section 6.7).
  case native
}

/// The result of a request to remove the device in a slot.
public enum RemovalAnswer: Hashable, Sendable {
  /// The attention button was pressed.
  case asked
  /// Software is switching the slot on or off. The button will be pressed once the slot is on. If software switches the
  /// slot off instead, that ejects the device.
  case deferred
  /// Software does not use the slot, so the device can be removed at once.
  case unpowered
  /// Software has not answered an earlier press. Another press would cancel it.
  case busy
}

/// The slot of a port with hotplug: actions of the board and of software.
extension RootPort {
  /// Announces a device after its functions were added to `bus`, function 0 last. Native hotplug sets the events for
  /// changes of presence and link. With ACPI hotplug, software does not enable these events, because the ACPI
  /// controller notifies it.
  public func inserted() { _ = changeSlot { $0.inserted() } }

  /// Asks software to release the device in the slot. For native hotplug only; the ACPI controller has its own method.
  public func requestRemoval() -> RemovalAnswer {
    precondition(hotplug == .native, "only native hotplug has an attention button")
    return changeSlot { $0.requestRemoval() } ?? .unpowered
  }

  /// Records that the functions were removed from `bus`, after an eject or by surprise.
  public func emptied() { _ = changeSlot { $0.emptied() } }

  /// Applies a configuration write to Slot Control and Slot Status. Ignores other registers.
  func writeSlot(offset: Int, width: AccessWidth, value: UInt64) {
    guard hotplug != nil, let express = function.expressOffset else { return }
    let shift = 8 * (offset - express - ExpressCapability.slotControl)
    // Smart shifts drop the bytes outside the two registers.
    let mask = UInt32(truncatingIfNeeded: width.allOnes << shift)
    guard mask != 0 else { return }
    let outcome = changeSlot { $0.write(UInt32(truncatingIfNeeded: value << shift), mask: mask) }
    switch outcome {
    case .eject: onEject()
    case .refuse: onRefusal()
    case .nothing, nil: break
    }
  }
}

/// A change of the registers of a slot with hotplug, for tracing (PCI Express Base 7.5.3.10 and 7.5.3.11).
public struct SlotChange: Sendable {
  public struct Registers: Hashable, Sendable {
    /// Slot Control.
    public let control: UInt16
    /// Slot Status.
    public let status: UInt16

    init(_ slot: SlotRegisters) {
      control = slot.control
      status = slot.status
    }

    /// Values of both indicators: 1 on, 2 blinking, 3 off.
    public var attentionIndicator: UInt16 { control[bits: SlotRegisters.Control.attentionIndicator] }
    public var powerIndicator: UInt16 { control[bits: SlotRegisters.Control.powerIndicator] }
    public var isPowerControllerOff: Bool { control[bit: SlotRegisters.Control.powerController] }
    /// Presence Detect State.
    public var isPresent: Bool { status & ExpressCapability.presenceDetect != 0 }
  }

  public let before: Registers
  public let after: Registers

  private func hasBegun(_ event: SlotRegisters.Events) -> Bool { after.status & ~before.status & event.rawValue != 0 }

  /// Whether the change set Attention Button Pressed.
  public var hasButtonPressed: Bool { hasBegun(.attentionButtonPressed) }
  /// Whether presence changed. Compares Presence Detect State as well, because the event bit of an earlier change
  /// may still be set: with ACPI hotplug, software does not clear it.
  public var hasPresenceChanged: Bool { hasBegun(.presenceDetectChanged) || before.isPresent != after.isPresent }
  public var hasLinkChanged: Bool { hasBegun(.linkStateChanged) }
}
