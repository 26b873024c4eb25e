/// Interrupt remapping of the I/O APIC's pins and of messages: edge and level, masks, the end of an interrupt, another
/// processor by another entry, source validation, compatibility format. COM1's transmitter drives an edge, edu's pin a
/// level. VT-d 4.1, 5.1 for the formats and checks, 5.1.5.1 for the I/O APIC, 9.9 for the entries.

private let com1: UInt16 = 0x3f8
private let com1Pin: UInt32 = 4
private let transmitterEmpty: UInt8 = 2
/// The I/O APIC's source-id, as the DMAR table's device scope has it.
private let sourceOfPins: UInt64 = 0xff00
/// Ticks in which an interrupt that is not to come would have come.
private let silence: UInt64 = 20_000_000

/// What the pins' entries in the I/O APIC have for a vector; the remapping table has others.
private let vectorOfPin: UInt32 = 0x61

private enum Vector {
  static let compatible: UInt32 = 0x50
  static let edge: UInt32 = 0x51
  static let level: UInt32 = 0x52
  static let message: UInt32 = 0x53
  static let all: ClosedRange<UInt32> = 0x50...0x61
}

private enum Index {
  static let edge: UInt64 = 3
  static let level: UInt64 = 200
  static let message: UInt64 = 5
}

private enum Reason {
  static let entryNotPresent: UInt64 = 0x22
  static let compatibilityFormatBlocked: UInt64 = 0x25
  static let sourceValidation: UInt64 = 0x26
}

private struct Setup {
  let edu: Edu
  let chip: IOAPIC
  let table: UInt64
  let isExtended: Bool

  /// edu's INTA: pin 16 and up, by its device number.
  var eduPin: UInt32 { 16 + edu.function.device & 7 }

  /// An entry: fixed delivery to one processor.
  func set(
    _ index: UInt64, vector: UInt32, to processor: UInt32, source: UInt64, isLevel: Bool = false, bits: UInt64 = 0
  ) {
    let destination = UInt64(processor) << (isExtended ? 32 : 40)
    store64(table + index * 16 + 8, 1 << 18 | source)
    store64(table + index * 16, destination | UInt64(vector) << 16 | (isLevel ? 1 << 4 : 0) | bits | 1)
    _ = RemappingUnit.invalidateInterruptEntry(index)
  }

  /// Has edu send its message by an entry.
  func prepareMessage(_ index: UInt64) {
    let handle = UInt32(truncatingIfNeeded: index)
    edu.setMessage(address: 0xfee0_0000 | (handle & 0x7fff) << 5 | 1 << 4, data: 0)
  }

  func checkFault(_ name: StaticString, _ reason: UInt64, index: UInt64, source: UInt64 = sourceOfPins) {
    RemappingUnit.checkFault(name, reason: reason, source: source, low: index << 48, isRead: false)
  }
}

private func sum() -> UInt32 {
  var sum: UInt32 = 0
  for vector in Vector.all { sum &+= Interrupts.count(vector) }
  return sum
}

/// Whether just one interrupt comes, by this vector, at this processor.
private func arrives(_ vector: UInt32, at processor: UInt32, after action: () -> Void) -> Bool {
  let before = Interrupts.count(vector, on: processor)
  let all = sum()
  action()
  let came = wait(ticks: RemappingUnit.patience) { Interrupts.count(vector, on: processor) != before }
  return came && !wait(ticks: silence / 20, until: { sum() != all &+ 1 })
}

private func staysSilent(after action: () -> Void) -> Bool {
  let before = sum()
  action()
  return !wait(ticks: silence) { sum() != before }
}

/// COM1 says that its transmitter is empty: it is, so the edge comes at once.
private func edge() {
  portWrite8(com1 + 1, 0)
  // What the console put must be gone, or it would bring an edge of its own.
  while portRead8(com1 + 5) & 0x40 == 0 { pauseProcessor() }
  portWrite8(com1 + 1, transmitterEmpty)
}

private func quiet() {
  _ = portRead8(com1 + 2)
  portWrite8(com1 + 1, 0)
}

private func raiseEdge() {
  edge()
  quiet()
}

// MARK: Pins

private func checkEdge(_ setup: Setup, own: UInt32, another: UInt32?) {
  put("an edge-triggered pin\n")
  let chip = setup.chip
  setup.set(Index.edge, vector: Vector.edge, to: own, source: sourceOfPins)
  chip.remap(pin: com1Pin, index: UInt32(Index.edge), vector: vectorOfPin)
  Report.check("the table's vector comes, not the pin's", arrives(Vector.edge, at: own, after: raiseEdge))
  Report.check("and again", arrives(Vector.edge, at: own, after: raiseEdge))
  chip.mask(pin: com1Pin)
  Report.check("masked, it does not", staysSilent(after: raiseEdge))
  Report.check("and unmasking does not bring the lost edge", staysSilent { chip.unmask(pin: com1Pin) })
  Report.check("but the next one comes", arrives(Vector.edge, at: own, after: raiseEdge))

  // Another vector, and where there is one another processor: in force when the entry is invalidated.
  let target = another ?? own
  let place = setup.table + Index.edge * 16
  let kept = load64(place)
  setup.set(Index.edge, vector: Vector.edge + 8, to: target, source: sourceOfPins)
  Report.check("another entry counts after its invalidation", arrives(Vector.edge + 8, at: target, after: raiseEdge))
  store64(place, kept)
  Report.check("a changed one not before", arrives(Vector.edge + 8, at: target, after: raiseEdge))
  _ = RemappingUnit.invalidateInterruptEntry(Index.edge)
  Report.check("but then", arrives(Vector.edge, at: own, after: raiseEdge))
  RemappingUnit.checkNoFault("nothing of it is a fault")

  setup.set(Index.edge, vector: Vector.edge, to: own, source: setup.edu.source)
  Report.check("an entry for another source blocks", staysSilent(after: raiseEdge))
  setup.checkFault("and that is recorded of the I/O APIC", Reason.sourceValidation, index: Index.edge)
  store64(place, 0)
  _ = RemappingUnit.invalidateInterruptEntry(Index.edge)
  Report.check("an entry that is not present blocks", staysSilent(after: raiseEdge))
  setup.checkFault("and that is recorded", Reason.entryNotPresent, index: Index.edge)
  setup.set(Index.edge, vector: Vector.edge, to: own, source: sourceOfPins)
  Report.check("present again, it serves", arrives(Vector.edge, at: own, after: raiseEdge))

  // An index above 15 bits has its last bit apart.
  chip.remap(pin: com1Pin, index: 0x8000 | UInt32(Index.edge), vector: vectorOfPin)
  Report.check("an index beyond the table blocks", staysSilent(after: raiseEdge))
  setup.checkFault("and that is recorded", 0x21, index: 0x8000 | Index.edge)
  chip.mask(pin: com1Pin)
}

/// A level-triggered interrupt comes again after each end until its line is lowered, which the handler does at the
/// fifth: by then ends have come back to the pin, although its vector is another one.
nonisolated(unsafe) private var storm: (edu: Edu, left: UInt32)?

private func lowerAtLast(_ vector: UInt32) {
  guard vector & 0xf0 == Vector.level & 0xf0, let (edu, left) = storm else { return }
  if !LocalAPIC.isInService(vector) { endsEarly = true }
  storm = (edu, left &- 1)
  if left == 1 { edu.lowerPin() }
}

/// A handler found that its interrupt is not in service: the local APIC ended it as it delivered it (Linux 6.18's
/// kvm-pvm does). Then the pin hears of an end that the handler has not got to, and, where that is before the line is
/// lowered, sends one more. A local APIC as the SDM has it (volume 3, 12.8.5) waits for the handler.
nonisolated(unsafe) private var endsEarly = false

private func storms(_ vector: UInt32, at processor: UInt32, after action: () -> Void) -> Bool {
  let before = Interrupts.count(vector, on: processor)
  let all = sum()
  action()
  let came = wait(ticks: RemappingUnit.patience) { Interrupts.count(vector, on: processor) &- before >= 5 }
  _ = wait(ticks: silence) { sum() &- all != 5 }
  let extra = sum() &- all &- 5
  if endsEarly, extra == 1 {
    put("one more came: this local APIC ends an interrupt before its handler does\n")
    if came, !wait(ticks: silence, until: { sum() &- all != 6 }) { return true }
  }
  if came, extra == 0 { return true }
  put("of 5 interrupts ")
  put(Interrupts.count(vector, on: processor) &- before)
  put(" came, and of any vector ")
  put(sum() &- all)
  endLine()
  return false
}

private func checkLevel(_ setup: Setup, own: UInt32, another: UInt32?) {
  put("a level-triggered pin\n")
  let chip = setup.chip
  let edu = setup.edu
  let pin = setup.eduPin
  setup.set(Index.level, vector: Vector.level, to: own, source: sourceOfPins, isLevel: true)
  chip.remap(pin: pin, index: UInt32(Index.level), vector: vectorOfPin, bits: IOAPIC.level | 1 << 13)

  Report.check(
    "masked, the level does not come",
    staysSilent {
      chip.mask(pin: pin)
      edu.raisePin()
    })
  disableInterrupts()
  chip.unmask(pin: pin)
  Report.check("unmasked it is sent: remote IRR is set", chip.state(pin) & IOAPIC.remoteIRR != 0)
  storm = (edu, 5)
  Interrupts.beforeEnd = lowerAtLast
  Report.check(
    "each end brings the next while the level stays", storms(Vector.level, at: own) { enableInterrupts() })
  Report.check("the last is ended", wait(ticks: RemappingUnit.patience) { chip.state(pin) & IOAPIC.remoteIRR == 0 })
  RemappingUnit.checkNoFault("nothing of it is a fault")

  let target = another ?? own
  setup.set(Index.level, vector: Vector.level + 8, to: target, source: sourceOfPins, isLevel: true)
  storm = (edu, 5)
  Report.check("so by another entry", storms(Vector.level + 8, at: target) { edu.raisePin() })
  Report.check("and ends", wait(ticks: RemappingUnit.patience) { chip.state(pin) & IOAPIC.remoteIRR == 0 })
  Interrupts.beforeEnd = nil

  setup.set(Index.level, vector: Vector.level, to: own, source: edu.source, isLevel: true)
  Report.check("the function's own source-id is not the pin's", staysSilent { edu.raisePin() })
  setup.checkFault("which is recorded", Reason.sourceValidation, index: Index.level)
  edu.lowerPin()
  chip.mask(pin: pin)
}

// MARK: Compatibility format

private func checkCompatibility(_ setup: Setup, own: UInt32) {
  put("compatibility format\n")
  let chip = setup.chip
  RemappingUnit.command(RemappingUnit.Command.compatibilityFormat, on: false)
  chip.redirect(pin: com1Pin, to: own, vector: Vector.compatible)
  Report.check("not allowed, it is blocked", staysSilent(after: raiseEdge))
  setup.checkFault("and that is recorded", Reason.compatibilityFormatBlocked, index: 0)
  RemappingUnit.command(RemappingUnit.Command.compatibilityFormat)
  if setup.isExtended {
    Report.check("with 32-bit destinations it is not to be allowed", staysSilent(after: raiseEdge))
    setup.checkFault("and that is recorded", Reason.compatibilityFormatBlocked, index: 0)
  } else {
    Report.check("allowed, it passes", arrives(Vector.compatible, at: own, after: raiseEdge))
    RemappingUnit.checkNoFault("and is no fault")
  }
  RemappingUnit.command(RemappingUnit.Command.compatibilityFormat, on: false)
  Report.check("not allowed again, it is blocked again", staysSilent(after: raiseEdge))
  setup.checkFault("and recorded", Reason.compatibilityFormatBlocked, index: 0)
  chip.mask(pin: com1Pin)
}

// MARK: Messages

private func checkMessages(_ setup: Setup, own: UInt32, another: UInt32?) {
  put("messages\n")
  let edu = setup.edu
  setup.set(Index.message, vector: Vector.message, to: own, source: edu.source)
  setup.prepareMessage(Index.message)
  Report.check("a message comes by its entry", arrives(Vector.message, at: own) { edu.raise() })
  if let another {
    let place = setup.table + Index.message * 16
    let kept = load64(place)
    setup.set(Index.message, vector: Vector.message, to: another, source: edu.source)
    Report.check("another entry moves it to the other processor", arrives(Vector.message, at: another) { edu.raise() })
    store64(place, kept)
    Report.check("a changed one does not", arrives(Vector.message, at: another) { edu.raise() })
    _ = RemappingUnit.invalidateInterruptEntries()
    Report.check("before its invalidation, which brings it back", arrives(Vector.message, at: own) { edu.raise() })
  }
  // Logical destinations with the redirection hint, lowest priority: either processor, and only one. In x2APIC mode
  // the first cluster's members are bits 0 and 1.
  if LocalAPIC.isX2APIC, setup.isExtended, another != nil {
    let logical: UInt64 = 1 << 2
    let hint: UInt64 = 1 << 3
    let lowestPriority: UInt64 = 1 << 5
    setup.set(Index.message, vector: Vector.message, to: 3, source: edu.source, bits: logical | hint | lowestPriority)
    let before = Interrupts.count(Vector.message)
    for _ in 0..<8 { edu.raise() }
    let came = wait(ticks: RemappingUnit.patience) { Interrupts.count(Vector.message) != before }
    _ = wait(ticks: silence) { Interrupts.count(Vector.message) &- before >= 8 }
    // Some may be one by the time they are taken; none is taken twice.
    Report.check(
      "with the redirection hint each goes to one of both", came && Interrupts.count(Vector.message) &- before <= 8)
    setup.set(Index.message, vector: Vector.message, to: 3, source: edu.source, bits: logical)
    let both = Interrupts.count(Vector.message, on: own)
    let others = Interrupts.count(Vector.message, on: another ?? own)
    edu.raise()
    Report.check(
      "without it, fixed, to both",
      wait(ticks: RemappingUnit.patience) {
        Interrupts.count(Vector.message, on: own) == both &+ 1
          && Interrupts.count(Vector.message, on: another ?? own) == others &+ 1
      })
  }
  RemappingUnit.checkNoFault("nothing of it is a fault")
  setup.set(Index.message, vector: Vector.message, to: own, source: sourceOfPins)
  Report.check("the I/O APIC's entry is not the function's", staysSilent { edu.raise() })
  setup.checkFault("which is recorded", Reason.sourceValidation, index: Index.message, source: edu.source)
}

private func check(_ edu: Edu, _ chip: IOAPIC, table: UInt64, own: UInt32, another: UInt32?, isExtended: Bool) {
  put(isExtended ? "32-bit destinations\n" : "8-bit destinations\n")
  let setup = Setup(edu: edu, chip: chip, table: table, isExtended: isExtended)
  guard RemappingUnit.remapInterrupts(by: setup.table, isExtended: isExtended) else { return }
  checkEdge(setup, own: own, another: another)
  checkLevel(setup, own: own, another: another)
  checkCompatibility(setup, own: own)
  checkMessages(setup, own: own, another: another)
  edu.disableMessages()
  RemappingUnit.command(RemappingUnit.Command.interruptRemappingEnable, on: false)
}

func kernelMain() {
  guard let edu = Edu.find() else { return Report.fail("there is no edu") }
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.interruptRemapping) else {
    return Report.fail("the unit offers no interrupt remapping")
  }
  guard let base = ACPI.ioAPIC else { return Report.fail("the MADT lists no I/O APIC") }
  LocalAPIC.start()
  let own = LocalAPIC.identifier
  var another: UInt32?
  if Multiboot.number("cpus") ?? 1 > 1 {
    another = Processors.startAnother(patience: RemappingUnit.patience)
    Report.check("another processor starts", another != nil)
  }
  RemappingUnit.startQueue(isWide: false)
  enableInterrupts()
  let chip = IOAPIC(base: base)
  chip.redirect(pin: com1Pin, to: own, vector: Vector.compatible)
  Report.check("without remapping a pin's entry is as it says", arrives(Vector.compatible, at: own, after: raiseEdge))
  chip.mask(pin: com1Pin)

  let table = Pages.take()
  check(edu, chip, table: table, own: own, another: another, isExtended: false)
  if RemappingUnit.offers(RemappingUnit.extendedInterrupts) {
    check(edu, chip, table: table, own: own, another: another, isExtended: true)
  }
  chip.redirect(pin: com1Pin, to: own, vector: Vector.compatible)
  Report.check("remapping off, a pin's entry is as it says", arrives(Vector.compatible, at: own, after: raiseEdge))
  RemappingUnit.checkNoFault("no fault is left")
  disableInterrupts()
}
