/// Tests that a reset restarts the guest, first by port 0xCF9 and then by a triple fault. The RAM of the clock (CMOS)
/// keeps its content across a reset, and this kernel counts its starts there. After each reset, COM1 has its power-on
/// value and the firmware has set Interrupt Line again.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/reset" -action reboot=reset

private func readClock(_ index: UInt8) -> UInt8 {
  portWrite8(0x70, index)
  return portRead8(0x71)
}

private func writeClock(_ index: UInt8, _ value: UInt8) {
  portWrite8(0x70, index)
  portWrite8(0x71, value)
}

func kernelMain() {
  let markAt: UInt8 = 0x60
  let countAt: UInt8 = 0x61
  let mark: UInt8 = 0xa7
  let starts = readClock(markAt) == mark ? readClock(countAt) : 0
  writeClock(markAt, mark)
  writeClock(countAt, starts + 1)
  put("start ")
  put(starts + 1)
  endLine()

  Report.check("COM1's scratch register has its power-on value", portRead8(0x3f8 + 7) == 0)
  portWrite8(0x3f8 + 7, 0x5a)
  // The board wires its slots to the I/O APIC's pins 16 to 23 in turn, as _PRT describes. PCI 3.0, 6.2.4.
  let function = Function(device: 1, number: 0)
  let pin = function.readPort8(0x3d)
  let wire = 16 + (UInt8(function.device) &+ pin &- 1) & 7
  Report.check(
    "the first device's Interrupt Line is the pin that it is wired to", pin > 0 && function.readPort8(0x3c) == wire)
  function.writePort(0x3c, 0xff)
  switch starts {
  case 0:
    portWrite8(0xcf9, 0x02)
    portWrite8(0xcf9, 0x06)
  case 1:
    loadEmptyInterruptTable()
    causeFault()
  default:
    Report.pass("two resets give three starts")
    return
  }
  while true { halt() }
}
