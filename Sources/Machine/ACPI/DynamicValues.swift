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
