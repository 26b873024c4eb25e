import Hardware
import PCI

/// The secondary table (SSDT) with the values that depend on the machine. The DSDT uses them:
///
/// - `\M64B` and `\M64L`: base and length in bytes of the memory window above 4 GiB.
/// - `\LBUS`: the highest bus number.
/// - `\NHPC`: 1 if hotplug is native, otherwise 0.
/// - The devices of the hotplug slots (`SlotDevices`).
enum DynamicValues {
  static func table(_ configuration: ACPIConfiguration) -> [UInt8] {
    let highWindow = configuration.highWindow
    let base = highWindow?.lowerBound ?? 0
    let length = highWindow.map { $0.upperBound - $0.lowerBound } ?? 0
    func name(_ name: String, _ value: UInt64) -> [UInt8] {
      MachineLanguage.name("\\" + name, MachineLanguage.quadword(value))
    }
    return TableHeader.table(
      "SSDT", revision: 2,
      body: name("M64B", base) + name("M64L", length) + name("LBUS", UInt64(configuration.lastBus))
        + name("NHPC", configuration.hotplugWay == .native ? 1 : 0) + SlotDevices.code(configuration))
  }
}

/// The ACPI devices of the hotplug slots, for the SSDT, with QEMU's names: a port `Sxx` on bus 0 (device and function
/// in hexadecimal), and below it `S00` for function 0 of the only device on the link. Their methods call methods of the
/// DSDT, which access the controller (`ACPIHotplugRegisters`).
///
/// One object is enough for a device with several functions: Linux has one slot for each device number. It removes all
/// of the slot's functions by `disable_slot` and calls the first _EJ0 that it finds (drivers/pci/hotplug/acpiphp_glue.c
/// of 6.12, `acpiphp_add_context`, `acpiphp_disable_and_eject_slot`). There is no _STA: without it Linux reads the
/// device's configuration space to see whether it is there (`get_slot_status`, `trim_stale_devices`). This gives the
/// right answer at the start, after an ejection and after a surprise removal.
enum SlotDevices {
  private typealias AML = MachineLanguage

  /// Makes the code for the SSDT's root scope. Without slots, and with native hotplug, `PNTF` is a method that does
  /// nothing.
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
