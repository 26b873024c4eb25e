import Hardware

/// The fixed ACPI description table (FADT, signature FACP; ACPI 6.5, section 5.2.9): the addresses of the power
/// management registers, and the parts of a traditional PC that this machine does not have.
enum FixedDescription {
  private static let size = 276
  private static let revision: UInt8 = 6
  private static let minorRevision: UInt8 = 5

  /// Fixed feature flags (table 5.10).
  private struct Features: OptionSet {
    let rawValue: UInt32

    /// WBINVD: the instruction WBINVD flushes the caches.
    static let writeBackInvalidate = Features(rawValue: 1 << 0)
    /// PROC_C1: all CPUs have the C1 state, HLT.
    static let processorC1 = Features(rawValue: 1 << 2)
    /// SLP_BUTTON: there is no fixed-feature sleep button. PWR_BUTTON stays clear: the power button is a fixed feature.
    static let noFixedSleepButton = Features(rawValue: 1 << 5)
    /// FIX_RTC: the alarm is not a fixed event. There is no sleep state from which it could wake the machine.
    static let noFixedClockWake = Features(rawValue: 1 << 6)
    /// RESET_REG_SUP: the reset register works.
    static let resetRegister = Features(rawValue: 1 << 10)
  }

  /// IA-PC boot architecture flags (table 5.11). 8042 stays clear: there is no keyboard controller. LEGACY_DEVICES
  /// stays clear: the DSDT lists all devices. CMOS_RTC_NOT_PRESENT stays clear: there is a CMOS clock.
  private struct BootArchitecture: OptionSet {
    let rawValue: UInt16

    /// VGA Not Present: the operating system must not probe for VGA.
    static let noVGA = BootArchitecture(rawValue: 1 << 2)
    /// PCIe ASPM Controls: the operating system must not enable active state power management.
    static let noASPM = BootArchitecture(rawValue: 1 << 4)
  }

  static func table(firmwareControl: UInt64, differentiated: UInt64) -> [UInt8] {
    // Offsets within the table, as in the specification.
    var bytes = [UInt8](repeating: 0, count: size)
    bytes.store(UInt32(truncatingIfNeeded: firmwareControl), at: 36)  // FIRMWARE_CTRL
    bytes.store(UInt32(truncatingIfNeeded: differentiated), at: 40)  // DSDT
    bytes.store(UInt16(ACPIPlatform.systemControlInterrupt), at: 46)  // SCI_INT
    // SMI_CMD (48) is zero: the machine is always in ACPI mode.
    bytes.store(UInt32(ACPIPlatform.eventPort), at: 56)  // PM1a_EVT_BLK
    bytes.store(UInt32(ACPIPlatform.controlPort), at: 64)  // PM1a_CNT_BLK
    bytes.store(UInt32(ACPIPlatform.timerPort), at: 76)  // PM_TMR_BLK
    bytes.store(UInt32(ACPIPlatform.generalPurposeEventPort), at: 80)  // GPE0_BLK
    bytes[88] = 4  // PM1_EVT_LEN
    bytes[89] = 2  // PM1_CNT_LEN
    bytes[91] = 4  // PM_TMR_LEN
    bytes[92] = 16  // GPE0_BLK_LEN
    // Latencies in microseconds. A value above 100 means that there is no C2, one above 1000 that there is no C3.
    bytes.store(UInt16(0xfff), at: 96)  // P_LVL2_LAT
    bytes.store(UInt16(0xfff), at: 98)  // P_LVL3_LAT
    bytes[108] = 0x32  // CENTURY: the CMOS index of the century
    let bootArchitecture: BootArchitecture = [.noVGA, .noASPM]
    bytes.store(bootArchitecture.rawValue, at: 109)
    let features: Features = [
      .writeBackInvalidate, .processorC1, .noFixedSleepButton, .noFixedClockWake, .resetRegister,
    ]
    bytes.store(features.rawValue, at: 112)
    bytes.replaceSubrange(116..<128, with: port(ACPIPlatform.resetPort, bits: 8, access: 1))  // RESET_REG
    bytes[128] = ACPIPlatform.resetValue
    bytes[131] = minorRevision
    // X_FIRMWARE_CTRL (132) is zero, so the 32-bit field applies.
    bytes.store(differentiated, at: 140)  // X_DSDT
    bytes.replaceSubrange(148..<160, with: port(ACPIPlatform.eventPort, bits: 32, access: 2))  // X_PM1a_EVT_BLK
    bytes.replaceSubrange(172..<184, with: port(ACPIPlatform.controlPort, bits: 16, access: 2))  // X_PM1a_CNT_BLK
    bytes.replaceSubrange(208..<220, with: port(ACPIPlatform.timerPort, bits: 32, access: 3))  // X_PM_TMR_BLK
    // X_GPE0_BLK
    bytes.replaceSubrange(220..<232, with: port(ACPIPlatform.generalPurposeEventPort, bits: 128, access: 1))
    bytes.replaceSubrange(268..<276, with: Array("NESTLING".utf8))  // hypervisor vendor identity
    return TableHeader.table("FACP", revision: revision, body: Array(bytes[TableHeader.size...]))
  }

  /// Makes a generic address structure (5.2.3.2) of an I/O port.
  /// - Parameter access: 1 for bytes, 2 for words, 3 for doublewords.
  private static func port(_ address: UInt16, bits: UInt8, access: UInt8) -> [UInt8] {
    var bytes: [UInt8] = [1, bits, 0, access]
    bytes.append(littleEndian: UInt64(address))
    return bytes
  }
}

/// The firmware ACPI control structure (FACS, 5.2.10). Only the guest takes its global lock, because there is no
/// firmware. Its waking vector is not used, because there is no S3. It has no checksum.
enum FirmwareControl {
  private static let size = 64

  static func table() -> [UInt8] {
    var bytes = Array("FACS".utf8)
    bytes.append(littleEndian: UInt32(size))
    bytes += [UInt8](repeating: 0, count: size - bytes.count)
    bytes[32] = 2  // version
    return bytes
  }
}
