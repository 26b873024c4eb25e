/// Tests the unit's own events at every processor: the fault event and the invalidation completion event, with a
/// physical and with a logical x2APIC destination. From the ninth processor on, a logical destination has bits above 7
/// (Intel SDM volume 3, 12.10.2.2), which are in the event's upper address register: VT-d 4.1, 11.4.7 and 11.4.9. The
/// unit does not remap its events, so 32-bit destinations need EIM but no interrupt remapping. `cpus=N` on the command
/// line is the number of processors.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-events" -smp 16 -device intel-iommu,intremap=on,eim=on

private typealias Register = RemappingUnit.Register

private enum Vector {
  static let fault: UInt32 = 0x53
  static let completion: UInt32 = 0x54
}

private let queueError: UInt32 = 1 << 4

/// Returns the logical x2APIC ID: the cluster in bits 31:16, a bit for the processor in 15:0.
private func logical(_ identifier: UInt32) -> UInt32 { (identifier >> 4) << 16 | 1 << (identifier & 0xf) }

/// Sets an event's message: the data, and the address with destination bits 7:0 and, in the upper half, 31:8.
private func program(_ control: UInt64, vector: UInt32, to destination: UInt32, isLogical: Bool) {
  RemappingUnit.write32(control + 4, vector)
  RemappingUnit.write32(control + 8, 0xfee0_0000 | (destination & 0xff) << 12 | (isLogical ? 1 << 2 : 0))
  RemappingUnit.write32(control + 12, destination & ~0xff)
  RemappingUnit.write32(control, 0)
}

/// Returns whether exactly one interrupt comes, at this processor.
private func arrives(_ vector: UInt32, at processor: UInt32, after action: () -> Void) -> Bool {
  let here = Interrupts.count(vector, on: processor)
  let all = Interrupts.count(vector)
  action()
  let came = wait(ticks: RemappingUnit.patience / 4) { Interrupts.count(vector, on: processor) != here }
  return came && Interrupts.count(vector) == all &+ 1
}

private func makeFault() {
  RemappingUnit.enqueue(0xf)
  RemappingUnit.ring()
}

/// Restarts the queue after the error of `makeFault`.
private func takeFault() {
  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  RemappingUnit.write32(Register.faultStatus, queueError)
  RemappingUnit.startQueue(isWide: false)
}

private func makeCompletion() {
  RemappingUnit.enqueue(0x5 | 1 << 4)
  RemappingUnit.ring()
}

private func takeCompletion() { RemappingUnit.write32(Register.completionStatus, 1) }

/// Prints the result of a check with the processor's number.
private func report(_ name: StaticString, at processor: UInt32, _ holds: Bool) {
  put(holds ? "PASS " : "FAIL ")
  put(name)
  put(" at processor ")
  put(processor)
  endLine()
  if !holds { Report.countFailure() }
}

/// Checks both events at a processor.
private func check(_ processor: UInt32, isLogical: Bool) {
  let destination = isLogical ? logical(processor) : processor
  program(Register.faultEventControl, vector: Vector.fault, to: destination, isLogical: isLogical)
  report(
    isLogical
      ? "the fault event arrives by a logical destination" : "the fault event arrives by a physical destination",
    at: processor, arrives(Vector.fault, at: processor, after: makeFault))
  takeFault()
  program(Register.completionEventControl, vector: Vector.completion, to: destination, isLogical: isLogical)
  report(
    isLogical
      ? "the completion event arrives by a logical destination"
      : "the completion event arrives by a physical destination",
    at: processor, arrives(Vector.completion, at: processor, after: makeCompletion))
  takeCompletion()
}

func kernelMain() {
  guard RemappingUnit.isThere else { return Report.fail("there is no VT-d unit") }
  LocalAPIC.start()
  guard LocalAPIC.isX2APIC else { return Report.fail("the processor has no x2APIC") }
  bootProcessor = LocalAPIC.identifier
  var count: UInt32 = 1
  _ = ACPI.forEachProcessor { identifier in
    if identifier != bootProcessor, Processors.start(identifier, patience: RemappingUnit.patience) { count += 1 }
  }
  if let expected = Multiboot.number("cpus") {
    Report.check("all processors start", UInt64(count) == expected)
  }
  RemappingUnit.startQueue(isWide: false)
  enableInterrupts()
  let hasUpperAddress = RemappingUnit.offers(RemappingUnit.extendedInterrupts)
  if !hasUpperAddress {
    RemappingUnit.write32(Register.faultEventControl + 12, 0x100)
    Report.check(
      "without EIM the upper address register is zero", RemappingUnit.read32(Register.faultEventControl + 12) == 0)
  }
  _ = ACPI.forEachProcessor { identifier in
    check(identifier, isLogical: false)
    if hasUpperAddress || logical(identifier) < 0x100 { check(identifier, isLogical: true) }
  }
  disableInterrupts()
}
