/// Tests two root ports with an edu below each: the bus numbers and windows that the firmware set, phantom functions,
/// the bits of a port that block addresses and requests, secondary bus reset, and the source-id of DMA after the guest
/// has renumbered the bus, with first-stage translation. PCI Express Base 7.5.1.3; VT-d 4.1, 3.4. The ports are at
/// 00:04.0 and 00:05.0, the second with `bus-reserve=2`.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/pci-bridges" -device intel-iommu,x-scalable-mode=on,x-flts=on \
///       -device pcie-root-port,id=rp0,addr=4,slot=1 -device pcie-root-port,id=rp1,addr=5,slot=2,bus-reserve=2 \
///       -device edu,bus=rp0,dma_mask=0xffffffffffffffff -device edu,bus=rp1,dma_mask=0xffffffffffffffff

private let absent: UInt32 = 0xffff_ffff
private let page: UInt64 = 0x5a_1234_5000
private let target: UInt64 = 0x5a_1234_6000
private let marker: UInt64 = 0x0123_4567_89ab_cdef

private enum Register {
  static let command: UInt32 = 0x04
  static let buses: UInt32 = 0x18
  static let memoryWindow: UInt32 = 0x20
  static let bridgeControl: UInt32 = 0x3c
  static let secondaryBusReset: UInt32 = 1 << 22
}

private struct Port {
  let function: Function

  var secondary: UInt32 { function.readPort(Register.buses) >> 8 & 0xff }

  func setCommand(_ bits: UInt32) { function.writePort(Register.command, bits) }
  func number(_ bus: UInt32) { function.writePort(Register.buses, bus << 16 | bus << 8) }
}

private func checkPhantoms(_ bus: UInt32) {
  var found = 0
  for device in UInt32(0)..<32 {
    for number in UInt32(0)..<8 where (device, number) != (0, 0) {
      if Function(device: device, number: number, bus: bus).readPort(0) != absent { found += 1 }
    }
  }
  Report.check("only device 0 answers below a port", found == 0)
}

private func checkNumbers(_ ports: (Port, Port)) {
  Report.check(
    "both ports are bridges",
    ports.0.function.readPort(0x08) >> 8 == 0x060400 && ports.1.function.readPort(0x08) >> 8 == 0x060400)
  Report.check("the port has a type 1 header", ports.0.function.readPort8(0x0e) & 0x7f == 1)
  Report.check("the first port leads to bus 1", ports.0.function.readPort(Register.buses) == 0x0001_0100)
  Report.check("the second port leads to buses 2 to 4", ports.1.function.readPort(Register.buses) == 0x0004_0200)
  Report.check("the MCFG table's last bus is 4", EnhancedConfiguration.lastBus == 4)
  var found = 0
  for bus in UInt32(1)...255 where Function(device: 0, number: 0, bus: bus).readPort(0) != absent { found += 1 }
  Report.check("no other bus has a function", found == 2)
  checkPhantoms(1)
  checkPhantoms(2)
  if let window = EnhancedConfiguration.window {
    let below = Function(device: 0, number: 0, bus: 1)
    Report.check(
      "configuration by memory and by ports agrees on bus 1", load32(below.address(window, 0)) == below.readPort(0))
  } else {
    Report.fail("there is no memory window for configuration")
  }
}

private func checkWindows(_ port: Port, _ edu: Edu) {
  let window = port.function.readPort(Register.memoryWindow)
  let base = UInt64(window & 0xfff0) << 16
  let limit = UInt64(window & 0xfff0_0000) | 0xf_ffff
  let bar = UInt64(edu.function.readPort(0x10) & ~0xf)
  Report.check("the port's window contains the BAR", base <= bar && bar + 0xf_ffff <= limit)
  Report.check("edu is alive", edu.isAlive)
  port.function.writePort(Register.memoryWindow, 0x0000_fff0)
  Report.check("behind a closed window edu does not answer", load32(bar) == absent)
  port.function.writePort(Register.memoryWindow, window)
  port.setCommand(0)
  Report.check("without the port's Memory Space Enable edu does not answer", load32(bar) == absent)
  port.setCommand(0x6)
  Report.check("with the window and Memory Space Enable edu answers again", edu.isAlive)
}

private func checkMastering(_ port: Port, _ edu: Edu, _ other: Edu) {
  let source = Pages.take()
  let destination = Pages.take()
  store64(source, marker)
  port.setCommand(0x2)
  _ = edu.copy(from: source, to: destination)
  Report.check("without the port's Bus Master Enable no DMA arrives", load64(destination) == 0)
  Report.check(
    "DMA from below the other port arrives", other.copy(from: source, to: destination) && load64(destination) == marker)
  store64(destination, 0)
  port.setCommand(0x6)
  Report.check(
    "with the port's Bus Master Enable DMA arrives",
    edu.copy(from: source, to: destination) && load64(destination) == marker)
}

private func checkReset(_ port: Port, _ edu: Edu) {
  let bar = edu.function.readPort(0x10)
  let control = port.function.readPort(Register.bridgeControl)
  port.function.writePort(Register.bridgeControl, control | Register.secondaryBusReset)
  Report.check(
    "during a secondary bus reset no device answers below the port",
    edu.function.readPort(0) == absent && load32(UInt64(bar & ~0xf)) == absent)
  port.function.writePort(Register.bridgeControl, control & ~Register.secondaryBusReset)
  Report.check(
    "after the secondary bus reset, edu's registers have their initial values",
    edu.function.readPort(Register.command) & 0xffff == 0 && edu.function.readPort(0x10) == 0)
  edu.function.writePort(0x10, bar)
  edu.function.writePort(Register.command, 0x6)
  Report.check("after the secondary bus reset, edu works again", edu.isAlive)
}

private func checkSources(_ port: Port, _ edu: Edu) {
  let tables = PagingTables(.first)
  let source = Pages.take()
  let destination = Pages.take()
  let leaf = PagingTables.present | PagingTables.writable | PagingTables.user
  tables.map(page, to: source, leaf)
  tables.map(target, to: destination, leaf)
  let sources = SourceTables(source: 0)
  SourceTables.setFirstStage(sources.makeScalable(), table: tables.root)
  // The context table is for bus 1 only.
  let context = load64(sources.root)
  store64(sources.root, 0)
  store64(sources.root + 1 * 16, context)
  guard RemappingUnit.translate(root: sources.root, isScalable: true) else { return }
  store64(source, marker)
  Report.check("DMA from bus 1 is translated", edu.copy(from: page, to: target) && load64(destination) == marker)
  RemappingUnit.checkNoFault("the request causes no fault")

  port.number(9)
  let moved = Edu(edu, onBus: 9)
  Report.check("the bus answers at its new number", moved.function.readPort(0) != absent)
  Report.check("the bus does not answer at its old number", edu.function.readPort(0) == absent)
  Report.check("edu is alive on the renumbered bus", moved.isAlive)
  _ = moved.read(from: page)
  if let fault = RemappingUnit.takeFault() {
    Report.check("DMA has the new source-id, which has no tables", fault.source == 9 << 8)
  } else {
    Report.fail("DMA after renumbering causes no fault")
  }
  store64(sources.root + 9 * 16, context)
  _ = RemappingUnit.invalidateEverything(isScalable: true)
  store64(destination, 0)
  Report.check(
    "with tables for the new source-id DMA is translated",
    moved.copy(from: page, to: target) && load64(destination) == marker)
  RemappingUnit.checkNoFault("the request causes no fault")
  port.number(1)
  store64(destination, 0)
  Report.check(
    "after the bus is number 1 again, DMA is translated",
    edu.copy(from: page, to: target) && load64(destination) == marker)
  _ = RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false)
  RemappingUnit.checkNoFault("no fault record remains")
}

func kernelMain() {
  let ports = (Port(function: Function(device: 4, number: 0)), Port(function: Function(device: 5, number: 0)))
  checkNumbers(ports)
  ports.0.setCommand(0x6)
  ports.1.setCommand(0x6)
  guard let first = Edu(Function(device: 0, number: 0, bus: 1)),
    let second = Edu(Function(device: 0, number: 0, bus: 2))
  else { return Report.fail("there is no edu below a port") }
  checkWindows(ports.0, first)
  checkMastering(ports.0, first, second)
  checkReset(ports.0, first)
  Report.check("a secondary bus reset of one port does not reset the device below the other", second.isAlive)
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.scalableMode),
    RemappingUnit.offers(RemappingUnit.firstStage)
  else { return Report.fail("the unit offers no first stage") }
  checkSources(ports.0, first)
}
