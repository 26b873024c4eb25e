/// The kind of hotplug below ports. The whole machine uses one, which `_OSC` grants to the guest.
public enum HotplugWay: Hashable, Sendable, CaseIterable {
  /// ACPI's `Notify` and `_EJ0` (ACPI 6.5, 5.6.6 and 6.3.3): a separate controller handles all slots.
  case acpi
  /// PCI Express native: each port has an attention button, indicators and a power controller (PCI Express Base 6.7).
  case native
}

/// The result of a request to remove the device in a slot.
public enum RemovalAnswer: Hashable, Sendable {
  /// The attention button was pressed.
  case asked
  /// Software is switching the slot on or off. The button is pressed when the slot is on; if software switches the slot
  /// off, that ejects the device.
  case deferred
  /// Software does not use the slot, so the device can be removed at once.
  case unpowered
  /// Software has not answered an earlier press. Another press would cancel it.
  case busy
}
