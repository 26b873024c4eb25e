import Hardware
import PCI

/// The devices of the hot-pluggable slots, for the SSDT, with names as QEMU gives them: a port `Sxx` on bus 0 (device and
/// function in hexadecimal), and below it `S00`, function 0 of the one device that a link has. The methods call those of
/// the DSDT, which work the controller (`ACPIHotplugRegisters`).
///
/// One object is enough for a device of several functions: Linux keeps a slot for each device number, takes all functions
/// of it away by `disable_slot` and calls the first _EJ0 that it finds (drivers/pci/hotplug/acpiphp_glue.c of 6.12,
/// `acpiphp_add_context`, `acpiphp_disable_and_eject_slot`). There is no _STA: without it Linux asks the device itself
/// whether it is there (`get_slot_status`, `trim_stale_devices`), which is right at the start, after an eject and while
/// a device has been pulled out.
enum SlotDevices {
  private typealias AML = MachineLanguage

  /// To stand in the root scope. Without slots, and in the native way, a method that notifies nothing.
  static func code(_ configuration: ACPIConfiguration) -> [UInt8] {
    let slots = configuration.hotplugWay == .acpi ? configuration.hotplugSlots : []
    var devices: [UInt8] = []
    var notifications: [UInt8] = []
    for (index, slot) in slots.enumerated() {
      let number = AML.integer(UInt64(index))
      devices += device(slot, number: number)
      notifications += AML.ifEqual(
        AML.argument(0), number, AML.notify("^\(name(slot.port)).\(slotName)", AML.argument(1)))
    }
    return AML.scope(#"\_SB.PCI0"#, devices + AML.method("PNTF", argumentCount: 2, notifications))
  }

  private static let slotName = "S00"

  private static func device(_ slot: HotplugSlot, number: [UInt8]) -> [UInt8] {
    let address = UInt64(slot.port.device) << 16 | UInt64(slot.port.function)
    let eject = AML.call("PCEJ", number)
    let report = AML.call("POST", number, AML.argument(0), AML.argument(1))
    return AML.device(
      name(slot.port),
      AML.name("_ADR", AML.integer(address))
        + AML.device(
          slotName,
          AML.name("_ADR", AML.integer(0)) + AML.name("_SUN", AML.integer(UInt64(slot.number)))
            + AML.method("_EJ0", argumentCount: 1, eject) + AML.method("_OST", argumentCount: 3, report)))
  }

  private static func name(_ port: RequesterID) -> String {
    let number = port.device << 3 | port.function
    let digits = String(number, radix: 16, uppercase: true)
    return "S" + (digits.count < 2 ? "0" : "") + digits
  }
}
