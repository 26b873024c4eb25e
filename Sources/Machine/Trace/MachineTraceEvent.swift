import VTd

/// The machine's trace events, which are about hotplug. The remapping units have others (`TraceEvent`). If QEMU has an
/// event of the same meaning (hw/acpi/trace-events, hw/pci/trace-events), the event has its name. Durations (`ns`) are
/// in nanoseconds of the host's monotonic clock.
public enum MachineTraceEvent: String, NamedTraceEvent {
  // ACPI hotplug. `bsel` is the slot's number in the ACPI tables. The device number below a root port is always 0.
  /// The guest has read whether a device has appeared in a slot, or whether the guest should give up the device.
  case appearanceRead = "acpi_pci_up_read"
  case removalRead = "acpi_pci_down_read"
  case unplugRequested = "acpi_pci_unplug_request"
  /// The guest has given up a device, or has released a device after its surprise removal.
  case slotEjected = "acpi_pci_eject_slot"
  /// The guest has evaluated _OST, which reports how it handled a notification (ACPI 6.5, section 6.3.5).
  case statusReported = "acpi_pci_ost"

  // The slot registers of a root port.
  /// The guest has changed Slot Control.
  case slotControlWritten = "pcie_cap_slot_write_config"
  /// Events of Slot Status were set: the button was pressed, presence or link changed.
  case slotEventSet = "pcie_cap_slot_event"

  // The life of a device, from its admission on.
  case admitted = "device_admitted"
  /// The device's functions are made. This includes waiting for the host, for example to open an image or to pin RAM.
  case built = "device_built"
  /// The device's functions are on their bus.
  case plugged = "device_plugged"
  /// The device could not be built or plugged in, and has been released.
  case givenUp = "device_given_up"
  case removalRequested = "device_removal_requested"
  /// The guest has refused to give up the device.
  case kept = "device_kept"
  /// The device is off its bus. Recorded on the thread of the CPU that ejected it, or on the machine's thread.
  case leftBus = "device_left_bus"
  /// No access or request of the device is in flight any more.
  case drained = "device_drained"
  /// The device holds no resources of the machine or the host any more.
  case released = "device_released"
  case deleted = "device_deleted"
}
