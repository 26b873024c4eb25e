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
  /// Whether presence changed. Compares Presence Detect State as well, since the event of an earlier change may still be
  /// set: with ACPI hotplug software does not clear it.
  public var hasPresenceChanged: Bool { hasBegun(.presenceDetectChanged) || before.isPresent != after.isPresent }
  public var hasLinkChanged: Bool { hasBegun(.linkStateChanged) }
}
