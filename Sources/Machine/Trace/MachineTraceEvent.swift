/// What the machine can tell of devices that come and go, beside the units' events. The names are those of QEMU's trace
/// events (hw/acpi/trace-events, hw/pci/trace-events) where they mean the same thing. Durations (`ns`) are nanoseconds of
/// the host's monotonic clock.
public enum MachineTraceEvent: String, CaseIterable, Sendable {
  // ACPI. `bsel` is the slot's number in the tables; below a root port the only device number is 0.
  /// The guest has looked whether a device has appeared, or is wanted back.
  case appearanceRead = "acpi_pci_up_read"
  case removalRead = "acpi_pci_down_read"
  case unplugRequested = "acpi_pci_unplug_request"
  /// The guest gives a device back, or has dropped one that was pulled out.
  case slotEjected = "acpi_pci_eject_slot"
  /// _OST (ACPI 6.5, 6.3.5).
  case statusReported = "acpi_pci_ost"

  // The registers of a root port's slot.
  /// Slot Control has changed.
  case slotControlWritten = "pcie_cap_slot_write_config"
  /// Events of Slot Status were set: the button was pressed, presence or link changed.
  case slotEventSet = "pcie_cap_slot_event"

  // A device's life, from its admission on.
  case admitted = "device_admitted"
  /// Its functions are made: what waits for the host, as the opening of an image or the pinning of RAM.
  case built = "device_built"
  /// They are on their bus.
  case plugged = "device_plugged"
  /// It does not come after all.
  case givenUp = "device_given_up"
  case removalRequested = "device_removal_requested"
  /// The guest keeps it.
  case kept = "device_kept"
  /// It is off its bus, on the thread of the CPU that ejected it or the machine's.
  case leftBus = "device_left_bus"
  /// Nothing of it is in flight any more.
  case drained = "device_drained"
  /// It holds nothing of the machine or the host.
  case released = "device_released"
  case deleted = "device_deleted"

  public var name: String { rawValue }
}
