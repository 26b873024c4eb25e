/// The parts of the ACPI tables that are the same on every machine. The DSDT's source (Firmware/dsdt.asl) repeats these
/// numbers.
enum ACPIPlatform {
  /// The enhanced configuration access mechanism (ECAM) of buses 0 to 255, with 1 MiB for each bus.
  static let configurationRange: Range<UInt64> = 0xb000_0000..<0xc000_0000
  /// The address range of the tables. Operating systems search this range for the root pointer.
  static let tablesRange: Range<UInt64> = 0xe_0000..<0x10_0000

  /// The system control interrupt (SCI), a global system interrupt: level triggered, active low.
  static let systemControlInterrupt: UInt8 = 9
  /// PM1a event block: status, then enable (4 bytes).
  static let eventPort: UInt16 = 0x600
  /// PM1a control block (2 bytes). SCI_EN reads as one, because the machine is always in ACPI mode.
  static let controlPort: UInt16 = 0x604
  /// Power management timer: 24 bits at 3.579545 MHz (4 bytes).
  static let timerPort: UInt16 = 0x608
  /// General-purpose event block 0: status, then enable (16 bytes).
  static let generalPurposeEventPort: UInt16 = 0x620
  /// The hotplug controller (36 bytes), at the same port as on QEMU's q35.
  static let hotplugPort: UInt16 = 0xcc0
  /// The reset control register, and the value that resets the machine.
  static let resetPort: UInt16 = 0xcf9
  static let resetValue: UInt8 = 0x06
}
