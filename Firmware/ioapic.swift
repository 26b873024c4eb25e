/// Tests a device's interrupt through the I/O APIC: COM1's empty transmitter raises pin 4. 82093AA I/O APIC,
/// 3.1; PC16550D, 8.6.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/ioapic"

private let com1: UInt16 = 0x3f8
private let interruptEnable = com1 + 1
private let interruptIdentification = com1 + 2
private let transmitterEmpty: UInt8 = 2

func kernelMain() {
  guard let base = ACPI.ioAPIC else {
    Report.fail("the MADT lists no I/O APIC")
    return
  }
  LocalAPIC.start()
  let chip = IOAPIC(base: base)
  let lastPin = chip.read(1) >> 16 & 0xff
  put("I/O APIC at 0x")
  put(Hexadecimal(base))
  put(", ")
  put(lastPin + 1)
  put(" pins")
  endLine()
  Report.check("the I/O APIC has 24 pins", lastPin == 23)

  chip.redirect(pin: 4, to: LocalAPIC.identifier, vector: Interrupts.device, masked: false)
  let written = chip.read(0x18)
  Report.check("a redirection entry holds the written value", written & 0x1_00ff == Interrupts.device)
  enableInterrupts()
  // The transmitter is empty, so the interrupt comes as soon as it is enabled.
  while portRead8(com1 + 5) & 0x40 == 0 { pauseProcessor() }
  portWrite8(interruptEnable, transmitterEmpty)
  let came = wait(ticks: 1_000_000_000) { Interrupts.count(Interrupts.device) != 0 }
  let reason = portRead8(interruptIdentification) & 0xf
  portWrite8(interruptEnable, 0)
  Report.check("the transmitter's interrupt arrives", came)
  Report.check("COM1 reports the empty transmitter as the reason", reason == 2)
  Report.check("the interrupt comes once", Interrupts.count(Interrupts.device) == 1)

  chip.redirect(pin: 4, to: LocalAPIC.identifier, vector: Interrupts.device, masked: true)
  while portRead8(com1 + 5) & 0x40 == 0 { pauseProcessor() }
  portWrite8(interruptEnable, transmitterEmpty)
  let leaked = wait(ticks: 10_000_000) { Interrupts.count(Interrupts.device) != 1 }
  portWrite8(interruptEnable, 0)
  Report.check("a masked pin sends no interrupt", !leaked)
  disableInterrupts()
}
