/// What is the same on every machine and stands in the tables as such: the DSDT's source
/// (Firmware/dsdt.asl) has these addresses written out.
public enum ACPIPlatform {
  /// The enhanced configuration access mechanism, buses 0 to 255: 1 MiB a bus.
  public static let configurationRange: Range<UInt64> = 0xb000_0000..<0xc000_0000
  /// The tables' place, where an operating system looks for the root pointer without being told.
  public static let tablesRange: Range<UInt64> = 0xe_0000..<0x10_0000

  /// System control interrupt: a global system interrupt, level triggered, active low.
  public static let systemControlInterrupt: UInt8 = 9
  /// PM1a event block: status, then enable (4 bytes).
  public static let eventPort: UInt16 = 0x600
  /// PM1a control block (2 bytes). SCI_EN reads as one: there is no other mode to change from.
  public static let controlPort: UInt16 = 0x604
  /// Power management timer: 24 bits at 3.579545 MHz (4 bytes).
  public static let timerPort: UInt16 = 0x608
  /// General-purpose event block 0: status, then enable (16 bytes).
  public static let generalPurposeEventPort: UInt16 = 0x620
  /// The hot-plug controller (36 bytes), where QEMU's q35 has it.
  public static let hotplugPort: UInt16 = 0xcc0
  /// Reset control register, and what resets the machine when written to it.
  public static let resetPort: UInt16 = 0xcf9
  public static let resetValue: UInt8 = 0x06
  /// SLP_TYP of the soft-off state, S5.
  public static let softOffSleepType: UInt8 = 0
}
