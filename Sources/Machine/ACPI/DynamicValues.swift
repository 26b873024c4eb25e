import Hardware

/// The secondary table (SSDT) that gives the DSDT what depends on the machine: `\M64B` and `\M64L`, base
/// and length in bytes of the memory window above 4 GiB, and `\LBUS`, the highest bus number. Made of ACPI machine
/// language by hand (ACPI 6.5, 20.2).
enum DynamicValues {
  static func table(_ configuration: ACPIConfiguration) -> [UInt8] {
    let highWindow = configuration.highWindow
    let base = highWindow?.lowerBound ?? 0
    let length = highWindow.map { $0.upperBound - $0.lowerBound } ?? 0
    return TableHeader.table(
      "SSDT", revision: 2,
      body: name("M64B", base) + name("M64L", length) + name("LBUS", UInt64(configuration.lastBus)))
  }

  /// NameOp, a name from the root, QWordPrefix, the value.
  private static func name(_ name: String, _ value: UInt64) -> [UInt8] {
    var bytes: [UInt8] = [0x08, 0x5c] + Array(name.utf8) + [0x0e]
    bytes.append(littleEndian: value)
    return bytes
  }
}
