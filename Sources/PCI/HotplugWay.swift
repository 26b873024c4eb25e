/// How devices come and go below a port: one way for the whole machine, which `_OSC` grants.
public enum HotplugWay: Hashable, Sendable, CaseIterable {
  /// ACPI's `Notify` and `_EJ0` (ACPI 6.5, 5.6.6 and 6.3.3): a controller beside the ports asks for the slots.
  case acpi
  /// PCI Express' own: each port has an attention button, indicators and a power controller (PCI Express Base 6.7).
  case native
}

/// What became of the wish to have a slot emptied.
public enum RemovalAnswer: Hashable, Sendable {
  /// The attention button is pressed.
  case asked
  /// Software is about to switch the slot on or off. Once it is on, the button is pressed; switched off, it is ejected.
  case deferred
  /// Software does not use the slot: what is in it can be taken at once.
  case unpowered
  /// An earlier press is not answered yet. Another one would cancel it.
  case busy
}
