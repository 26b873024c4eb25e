/// Tests interrupt remapping of the I/O APIC's pins and of messages: edge and level, masks, the end of an interrupt, an
/// entry with another processor as destination, source validation, compatibility format. COM1's transmitter drives an
/// edge-triggered pin, edu a level-triggered one. VT-d 4.1, 5.1 for the formats and checks, 5.1.5.1 for the I/O APIC,
/// 9.9 for the entries.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-ioapic" -smp 2 -device intel-iommu,eim=on -device edu

private let com1: UInt16 = 0x3f8
private let com1Pin: UInt32 = 4
private let transmitterEmpty: UInt8 = 2
/// The I/O APIC's source-id, from the DMAR table's device scope.
private let sourceOfPins: UInt64 = 0xff00
/// Ticks after which an interrupt that must not come would have come.
private let silence: UInt64 = 20_000_000

/// The vector in the I/O APIC's entries. The remapping table has other vectors.
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

  /// The pin of edu's INTA: 16 and up, selected by its device number.
  var eduPin: UInt32 { 16 + edu.function.device & 7 }

  /// Writes an entry with fixed delivery to one processor, and invalidates it.
  func set(
    _ index: UInt64, vector: UInt32, to processor: UInt32, source: UInt64, isLevel: Bool = false, bits: UInt64 = 0
  ) {
    let destination = UInt64(processor) << (isExtended ? 32 : 40)
    store64(table + index * 16 + 8, 1 << 18 | source)
    store64(table + index * 16, destination | UInt64(vector) << 16 | (isLevel ? 1 << 4 : 0) | bits | 1)
    _ = RemappingUnit.invalidateInterruptEntry(index)
  }

  /// Makes edu send a message that uses an entry.
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

/// Returns whether exactly one interrupt comes, with this vector and at this processor.
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

/// Enables the interrupt of COM1's empty transmitter, so that the edge comes at once.
private func edge() {
  portWrite8(com1 + 1, 0)
  // Wait until the console's output is sent: its end would cause another edge.
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
  Report.check(
    "the interrupt has the vector of the table, not that of the pin", arrives(Vector.edge, at: own, after: raiseEdge))
  Report.check("the next edge also brings an interrupt", arrives(Vector.edge, at: own, after: raiseEdge))
  chip.mask(pin: com1Pin)
  Report.check("a masked pin brings no interrupt", staysSilent(after: raiseEdge))
  Report.check(
    "unmasking does not deliver the edge that came while the pin was masked", staysSilent { chip.unmask(pin: com1Pin) })
  Report.check("after unmasking the next edge brings an interrupt", arrives(Vector.edge, at: own, after: raiseEdge))

  // The entry gets another vector and, if there is one, another processor, which take effect when it is invalidated.
  let target = another ?? own
  let place = setup.table + Index.edge * 16
  let kept = load64(place)
  setup.set(Index.edge, vector: Vector.edge + 8, to: target, source: sourceOfPins)
  Report.check(
    "after the entry is invalidated its new content has effect", arrives(Vector.edge + 8, at: target, after: raiseEdge))
  store64(place, kept)
  Report.check(
    "a changed entry has no effect before it is invalidated", arrives(Vector.edge + 8, at: target, after: raiseEdge))
  _ = RemappingUnit.invalidateInterruptEntry(Index.edge)
  Report.check("after the changed entry is invalidated, it has effect", arrives(Vector.edge, at: own, after: raiseEdge))
  RemappingUnit.checkNoFault("none of these interrupts causes a fault")

  setup.set(Index.edge, vector: Vector.edge, to: own, source: setup.edu.source)
  Report.check("an entry for another source blocks the interrupt", staysSilent(after: raiseEdge))
  setup.checkFault("the fault has the I/O APIC's source-id", Reason.sourceValidation, index: Index.edge)
  store64(place, 0)
  _ = RemappingUnit.invalidateInterruptEntry(Index.edge)
  Report.check("an entry that is not present blocks the interrupt", staysSilent(after: raiseEdge))
  setup.checkFault("the blocked interrupt is recorded", Reason.entryNotPresent, index: Index.edge)
  setup.set(Index.edge, vector: Vector.edge, to: own, source: sourceOfPins)
  Report.check("an entry that is present again delivers", arrives(Vector.edge, at: own, after: raiseEdge))

  // Bit 15 of an index is in another place than bits 14:0.
  chip.remap(pin: com1Pin, index: 0x8000 | UInt32(Index.edge), vector: vectorOfPin)
  Report.check("an index beyond the table blocks the interrupt", staysSilent(after: raiseEdge))
  setup.checkFault("the blocked interrupt is recorded", 0x21, index: 0x8000 | Index.edge)
  chip.mask(pin: com1Pin)
}

/// The state of a level-triggered interrupt: it comes again after each end of interrupt until its line is lowered. The
/// handler lowers the line at the fifth interrupt. This shows that ends of interrupt reach the pin, although the vector
/// in the I/O APIC's entry differs from the vector of the interrupt.
nonisolated(unsafe) private var storm: (edu: Edu, left: UInt32)?

private func lowerAtFifth(_ vector: UInt32) {
  guard vector & 0xf0 == Vector.level & 0xf0, let (edu, left) = storm else { return }
  if !LocalAPIC.isInService(vector) { endsEarly = true }
  storm = (edu, left &- 1)
  if left == 1 { edu.lowerPin() }
}

/// Whether a handler found that its interrupt is not in service: the local APIC ended the interrupt when it delivered
/// it, as Linux 6.18's kvm-pvm does. Then the pin receives an end of interrupt before the handler's own, and sends one
/// more interrupt if the line is still raised. A local APIC that follows the SDM (volume 3, 12.8.5) waits for the
/// handler.
nonisolated(unsafe) private var endsEarly = false

private func storms(_ vector: UInt32, at processor: UInt32, after action: () -> Void) -> Bool {
  let before = Interrupts.count(vector, on: processor)
  let all = sum()
  action()
  let came = wait(ticks: RemappingUnit.patience) { Interrupts.count(vector, on: processor) &- before >= 5 }
  _ = wait(ticks: silence) { sum() &- all != 5 }
  let extra = sum() &- all &- 5
  if endsEarly, extra == 1 {
    put("one more interrupt came: this local APIC ends an interrupt before its handler does\n")
    if came, !wait(ticks: silence, until: { sum() &- all != 6 }) { return true }
  }
  if came, extra == 0 { return true }
  put("expected 5 interrupts: ")
  put(Interrupts.count(vector, on: processor) &- before)
  put(" came with the vector, and with all vectors ")
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
    "a masked level brings no interrupt",
    staysSilent {
      chip.mask(pin: pin)
      edu.raisePin()
    })
  disableInterrupts()
  chip.unmask(pin: pin)
  Report.check("an unmasked level sets remote IRR", chip.state(pin) & IOAPIC.remoteIRR != 0)
  storm = (edu, 5)
  Interrupts.beforeEnd = lowerAtFifth
  Report.check(
    "while the line is raised, each end of interrupt causes the next interrupt",
    storms(Vector.level, at: own) { enableInterrupts() })
  Report.check(
    "the last end of interrupt clears remote IRR",
    wait(ticks: RemappingUnit.patience) { chip.state(pin) & IOAPIC.remoteIRR == 0 })
  RemappingUnit.checkNoFault("none of these interrupts causes a fault")

  let target = another ?? own
  setup.set(Index.level, vector: Vector.level + 8, to: target, source: sourceOfPins, isLevel: true)
  storm = (edu, 5)
  Report.check(
    "while the line is raised, each end of interrupt causes the next through another entry",
    storms(Vector.level + 8, at: target) { edu.raisePin() })
  Report.check(
    "the last end of interrupt clears remote IRR again",
    wait(ticks: RemappingUnit.patience) { chip.state(pin) & IOAPIC.remoteIRR == 0 })
  Interrupts.beforeEnd = nil

  setup.set(Index.level, vector: Vector.level, to: own, source: edu.source, isLevel: true)
  Report.check("an entry for the function's source-id blocks the interrupt of its pin", staysSilent { edu.raisePin() })
  setup.checkFault("the blocked interrupt is recorded", Reason.sourceValidation, index: Index.level)
  edu.lowerPin()
  chip.mask(pin: pin)
}

// MARK: Compatibility format

private func checkCompatibility(_ setup: Setup, own: UInt32) {
  put("compatibility format\n")
  let chip = setup.chip
  RemappingUnit.command(RemappingUnit.Command.compatibilityFormat, on: false)
  chip.redirect(pin: com1Pin, to: own, vector: Vector.compatible)
  Report.check(
    "an interrupt in compatibility format is blocked if the unit does not allow it", staysSilent(after: raiseEdge))
  setup.checkFault("the blocked interrupt is recorded", Reason.compatibilityFormatBlocked, index: 0)
  RemappingUnit.command(RemappingUnit.Command.compatibilityFormat)
  if setup.isExtended {
    Report.check(
      "with 32-bit destinations an interrupt in compatibility format is blocked even if allowed",
      staysSilent(after: raiseEdge))
    setup.checkFault("the blocked interrupt is recorded", Reason.compatibilityFormatBlocked, index: 0)
  } else {
    Report.check(
      "an interrupt in allowed compatibility format passes", arrives(Vector.compatible, at: own, after: raiseEdge))
    RemappingUnit.checkNoFault("an interrupt in allowed compatibility format causes no fault")
  }
  RemappingUnit.command(RemappingUnit.Command.compatibilityFormat, on: false)
  Report.check(
    "an interrupt in compatibility format is blocked after the unit stops allowing it", staysSilent(after: raiseEdge))
  setup.checkFault("the interrupt that is blocked again is recorded", Reason.compatibilityFormatBlocked, index: 0)
  chip.mask(pin: com1Pin)
}

// MARK: Messages

private func checkMessages(_ setup: Setup, own: UInt32, another: UInt32?) {
  put("messages\n")
  let edu = setup.edu
  setup.set(Index.message, vector: Vector.message, to: own, source: edu.source)
  setup.prepareMessage(Index.message)
  Report.check("a message is delivered through its entry", arrives(Vector.message, at: own) { edu.raise() })
  if let another {
    let place = setup.table + Index.message * 16
    let kept = load64(place)
    setup.set(Index.message, vector: Vector.message, to: another, source: edu.source)
    Report.check(
      "an entry with another destination delivers the message to the other processor",
      arrives(Vector.message, at: another) { edu.raise() })
    store64(place, kept)
    Report.check(
      "a changed entry has no effect on the message before the entry is invalidated",
      arrives(Vector.message, at: another) { edu.raise() })
    _ = RemappingUnit.invalidateInterruptEntries()
    Report.check(
      "after the entry is invalidated the message goes to the first processor again",
      arrives(Vector.message, at: own) { edu.raise() })
  }
  // A logical destination with the redirection hint and lowest priority selects one of the two processors. In x2APIC
  // mode, bits 0 and 1 are the first cluster's members.
  if LocalAPIC.isX2APIC, setup.isExtended, another != nil {
    let logical: UInt64 = 1 << 2
    let hint: UInt64 = 1 << 3
    let lowestPriority: UInt64 = 1 << 5
    setup.set(Index.message, vector: Vector.message, to: 3, source: edu.source, bits: logical | hint | lowestPriority)
    let before = Interrupts.count(Vector.message)
    for _ in 0..<8 { edu.raise() }
    let came = wait(ticks: RemappingUnit.patience) { Interrupts.count(Vector.message) != before }
    _ = wait(ticks: silence) { Interrupts.count(Vector.message) &- before >= 8 }
    // Some interrupts may merge before they are delivered. None is delivered twice.
    Report.check(
      "with the redirection hint each message goes to one of the two processors",
      came && Interrupts.count(Vector.message) &- before <= 8)
    setup.set(Index.message, vector: Vector.message, to: 3, source: edu.source, bits: logical)
    let both = Interrupts.count(Vector.message, on: own)
    let others = Interrupts.count(Vector.message, on: another ?? own)
    edu.raise()
    Report.check(
      "without the hint, a fixed message goes to both processors",
      wait(ticks: RemappingUnit.patience) {
        Interrupts.count(Vector.message, on: own) == both &+ 1
          && Interrupts.count(Vector.message, on: another ?? own) == others &+ 1
      })
  }
  RemappingUnit.checkNoFault("none of these interrupts causes a fault")
  setup.set(Index.message, vector: Vector.message, to: own, source: sourceOfPins)
  Report.check("an entry for the I/O APIC blocks the function's message", staysSilent { edu.raise() })
  setup.checkFault(
    "the blocked interrupt is recorded", Reason.sourceValidation, index: Index.message, source: edu.source)
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
  Report.check(
    "without remapping the I/O APIC's entry has effect as it is", arrives(Vector.compatible, at: own, after: raiseEdge))
  chip.mask(pin: com1Pin)

  let table = Pages.take()
  check(edu, chip, table: table, own: own, another: another, isExtended: false)
  if RemappingUnit.offers(RemappingUnit.extendedInterrupts) {
    check(edu, chip, table: table, own: own, another: another, isExtended: true)
  }
  chip.redirect(pin: com1Pin, to: own, vector: Vector.compatible)
  Report.check(
    "after remapping goes off the I/O APIC's entry has effect as it is",
    arrives(Vector.compatible, at: own, after: raiseEdge))
  RemappingUnit.checkNoFault("no fault record remains")
  disableInterrupts()
}
