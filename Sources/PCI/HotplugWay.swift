/// How devices come and go below root ports. A machine has one way.
public enum HotplugWay: Hashable, Sendable, CaseIterable {
  /// Firmware's methods announce it (ACPI 6.5, section 6.3), as on QEMU's q35.
  case acpi
  /// The port's slot registers announce it (PCI Express Base 5.0, section 6.7).
  case native
}
