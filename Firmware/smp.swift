/// Tests two or more processors and their local APICs: the one-shot and the TSC-deadline mode of the timer, the start
/// of the other processors, and an interrupt to each of them, which the processor answers with an interrupt. `cpus=N`
/// on the command line is the expected number of processors.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/smp" -smp 4

/// The longest wait, in ticks of the TSC: about four seconds, because a nested guest on a loaded host may be slow.
private let patience: UInt64 = 10_000_000_000

private func checkTimers() {
  LocalAPIC.write(.divideConfiguration, 0x3)  // by 16
  LocalAPIC.write(.timer, Interrupts.timer)  // one shot
  LocalAPIC.write(.initialCount, 10_000)
  enableInterrupts()
  Report.check(
    "the one-shot timer fires", wait(ticks: patience) { Interrupts.count(Interrupts.timer) == 1 })
  Report.check(
    "the one-shot timer fires only once", !wait(ticks: patience / 500) { Interrupts.count(Interrupts.timer) != 1 })

  guard LocalAPIC.hasDeadlineTimer else {
    put("SKIP the processor has no TSC deadline timer\n")
    disableInterrupts()
    return
  }
  let deadlineMode: UInt32 = 2 << 17
  LocalAPIC.write(.timer, deadlineMode | Interrupts.timer)
  let deadline = readTimestamp() + 10_000_000
  let before = Interrupts.count(Interrupts.timer)
  writeMSR(LocalAPIC.deadlineMSR, deadline)
  let fired = wait(ticks: patience) { Interrupts.count(Interrupts.timer) != before }
  let now = readTimestamp()
  disableInterrupts()
  Report.check("the deadline timer fires", fired)
  Report.check("the deadline timer does not fire early", now >= deadline)
  LocalAPIC.write(.timer, 1 << 16)  // masked
}

func kernelMain() {
  LocalAPIC.start()
  bootProcessor = LocalAPIC.identifier
  put(LocalAPIC.isX2APIC ? "x2APIC" : "xAPIC")
  put(", this processor is ")
  put(bootProcessor)
  endLine()
  checkTimers()

  var listed: UInt64 = 0
  var started: UInt64 = 0
  var answered: UInt64 = 0
  let hasTable = ACPI.forEachProcessor { identifier in
    listed += 1
    if identifier == bootProcessor { return }
    guard Processors.start(identifier, patience: patience) else {
      put("FAIL processor ")
      put(identifier)
      put(" did not start")
      endLine()
      Report.countFailure()
      return
    }
    started += 1
    let pongs = Interrupts.count(Interrupts.pong)
    LocalAPIC.sendFixed(vector: Interrupts.ping, to: identifier)
    enableInterrupts()
    if wait(ticks: patience, until: { Interrupts.count(Interrupts.pong) != pongs }) { answered += 1 }
    disableInterrupts()
  }
  Report.check("the MADT lists at least one enabled processor", hasTable && listed > 0)
  Report.check("all other processors start", started + 1 == listed)
  Report.check("each other processor answers an interrupt with an interrupt", answered == started)
  if let expected = Multiboot.number("cpus") {
    Report.check("the MADT lists the expected number of processors", listed == expected)
  }
}
