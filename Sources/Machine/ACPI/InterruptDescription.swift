import Hardware

/// The multiple APIC description table (MADT, signature APIC; ACPI 6.5, section 5.2.12): the CPUs with their local
/// APICs, the I/O APIC and its interrupts.
///
/// PCAT_COMPAT stays clear: there are no 8259 controllers.
enum InterruptDescription {
  private static let revision: UInt8 = 6
  private static let localAPICAddress: UInt32 = 0xfee0_0000
  /// The first APIC id that needs more than 8 bits. 255 in an 8-bit field means all CPUs.
  private static let firstWideID: UInt32 = 255

  static func table(_ configuration: ACPIConfiguration) -> [UInt8] {
    let flags: UInt32 = 0
    var body = [UInt8](littleEndian: localAPICAddress, flags)

    for (index, id) in configuration.localAPICs.enumerated() {
      body += processor(UInt32(truncatingIfNeeded: index), id: id)
    }

    let ioAPIC = configuration.ioAPIC
    body += [1, 12, ioAPIC.id, 0]
    body.append(littleEndian: ioAPIC.address, ioAPIC.interruptBase)

    // Interrupt source override: the SCI has the number of an ISA interrupt, but is level triggered and active low.
    body += [2, 10, 0, ACPIPlatform.systemControlInterrupt]
    body.append(littleEndian: UInt32(ACPIPlatform.systemControlInterrupt), UInt16(0b1111))

    // The non-maskable interrupt is wired to LINT1 of every CPU, edge triggered and active high.
    body += [4, 6, 0xff]
    body.append(littleEndian: UInt16(0))
    body.append(1)
    if configuration.localAPICs.contains(where: { $0 >= firstWideID }) {
      body += [0xa, 12]
      body.append(littleEndian: UInt16(0), UInt32.max)
      body += [1, 0, 0, 0]
    }
    return TableHeader.table("APIC", revision: revision, body: body)
  }

  /// Makes a local APIC structure, or a local x2APIC structure if the CPU's numbers need more than 8 bits.
  private static func processor(_ uid: UInt32, id: UInt32) -> [UInt8] {
    let enabled: UInt32 = 1
    var bytes: [UInt8]
    if id < firstWideID, let uid = UInt8(exactly: uid), uid < 0xff {
      bytes = [0, 8, uid, UInt8(id)]
      bytes.append(littleEndian: enabled)
    } else {
      bytes = [9, 16, 0, 0]
      bytes.append(littleEndian: id, enabled, uid)
    }
    return bytes
  }
}
