/// Tests interrupt remapping and the fault event. edu sends messages in remappable format, and an entry of the
/// interrupt remapping table delivers or blocks each message. VT-d 4.1, 5.1 for the formats, 9.9 for the entries,
/// 5.1.4.1 for the faults, 6.5.2.7 for the cache.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-interrupts" -device intel-iommu -device edu

private enum Vector {
  static let compatible: UInt32 = 0x50
  static let remapped: UInt32 = 0x51
  static let changed: UInt32 = 0x52
  static let fault: UInt32 = 0x53
}

private enum Reason {
  static let indexBeyondTable: UInt64 = 0x21
  static let entryNotPresent: UInt64 = 0x22
  static let entryReserved: UInt64 = 0x24
  static let compatibilityFormatBlocked: UInt64 = 0x25
  static let sourceValidation: UInt64 = 0x26
}

private let messageBase: UInt32 = 0xfee0_0000
private let index: UInt64 = 5
/// Ticks after which an interrupt that must not come would have come.
private let silence: UInt64 = 20_000_000

private struct Setup {
  let edu: Edu
  let table: UInt64
  /// Whether the entries have 32-bit destinations (EIME).
  let isExtended: Bool

  /// Writes an entry for this processor: fixed, edge, present.
  func set(_ index: UInt64, vector: UInt32, validation: UInt64, source: UInt64) {
    let destination = UInt64(LocalAPIC.identifier) << (isExtended ? 32 : 40)
    store64(table + index * 16 + 8, validation << 18 | source)
    store64(table + index * 16, destination | UInt64(vector) << 16 | 1)
  }

  func clear(_ index: UInt64) { store64(table + index * 16, 0) }

  /// Makes edu send a message for an entry.
  /// - Parameter subhandle: the message's data, which the unit adds to the index (SHV); nil: a message without
  ///   subhandle.
  func send(_ index: UInt64, subhandle: UInt32? = nil) {
    let handle = UInt32(truncatingIfNeeded: index)
    let address = messageBase | (handle & 0x7fff) << 5 | 1 << 4 | (subhandle == nil ? 0 : 1 << 3) | (handle >> 15) << 2
    edu.setMessage(address: address, data: subhandle ?? 0)
    edu.raise()
  }

  func checkFault(_ name: StaticString, _ reason: UInt64, index: UInt64) {
    RemappingUnit.checkFault(name, reason: reason, source: edu.source, low: index << 48, isRead: false)
  }
}

/// Returns whether the action causes exactly one interrupt, with this vector.
private func arrives(_ vector: UInt32, after action: () -> Void) -> Bool {
  let before = Interrupts.count(vector)
  let others = sum() &- before
  action()
  let came = wait(ticks: RemappingUnit.patience) { Interrupts.count(vector) != before }
  return came && Interrupts.count(vector) == before + 1 && sum() &- Interrupts.count(vector) == others
}

private func staysSilent(after action: () -> Void) -> Bool {
  let before = sum()
  action()
  return !wait(ticks: silence) { sum() != before }
}

private func sum() -> UInt32 {
  var sum: UInt32 = 0
  for vector in Vector.compatible...Vector.fault { sum &+= Interrupts.count(vector) }
  return sum
}

private func checkRemapping(_ setup: Setup) {
  let edu = setup.edu
  setup.set(index, vector: Vector.remapped, validation: 1, source: edu.source)
  Report.check("a message brings its entry's vector", arrives(Vector.remapped) { setup.send(index) })
  Report.check(
    "the unit adds a subhandle to the index", arrives(Vector.remapped) { setup.send(index - 3, subhandle: 3) })
  RemappingUnit.checkNoFault("the two messages cause no fault")

  let blocked = staysSilent {
    edu.setMessage(
      address: messageBase | LocalAPIC.identifier << 12, data: Vector.compatible)
    edu.raise()
  }
  Report.check("a message in compatibility format is blocked", blocked)
  setup.checkFault("the blocked message is recorded", Reason.compatibilityFormatBlocked, index: 0)

  // The unit caches a valid entry until it is invalidated.
  Report.check("a message caches its entry", arrives(Vector.remapped) { setup.send(index) })
  setup.set(index, vector: Vector.changed, validation: 1, source: edu.source)
  Report.check("a changed entry has no effect before an invalidation", arrives(Vector.remapped) { edu.raise() })
  _ = RemappingUnit.invalidateInterruptEntry(index + 1)
  Report.check("an invalidation of another entry leaves the entry cached", arrives(Vector.remapped) { edu.raise() })
  _ = RemappingUnit.invalidateInterruptEntry(index)
  Report.check("after the changed entry is invalidated, it has effect", arrives(Vector.changed) { edu.raise() })
  setup.clear(index)
  Report.check("a cleared entry stays cached", arrives(Vector.changed) { edu.raise() })
  _ = RemappingUnit.invalidateInterruptEntries()
  RemappingUnit.checkNoFault("the invalidation of a cleared entry causes no fault")
  Report.check("after a cleared entry is invalidated, it blocks the message", staysSilent { edu.raise() })
  setup.checkFault("the blocked message is recorded", Reason.entryNotPresent, index: index)
}

private func checkBlocking(_ setup: Setup) {
  let edu = setup.edu
  /// Writes an entry, invalidates the cache, and sends its message.
  func send(_ number: UInt64, validation: UInt64, source: UInt64) {
    setup.set(number, vector: Vector.remapped, validation: validation, source: source)
    _ = RemappingUnit.invalidateInterruptEntries()
    setup.send(number)
  }
  Report.check(
    "without validation every source passes", arrives(Vector.remapped) { send(9, validation: 0, source: 0xffff) })
  Report.check(
    "an entry for another function blocks the message", staysSilent { send(9, validation: 1, source: edu.source ^ 8) })
  setup.checkFault("the blocked message is recorded", Reason.sourceValidation, index: 9)
  Report.check(
    "an entry for another bus range blocks the message", staysSilent { send(9, validation: 2, source: 0x0102) })
  setup.checkFault("the blocked message is recorded", Reason.sourceValidation, index: 9)
  Report.check(
    "an entry for the function's bus range delivers",
    arrives(Vector.remapped) { send(9, validation: 2, source: 0x0001) })
  Report.check(
    "an entry with reserved bits blocks the message",
    staysSilent {
      setup.set(10, vector: Vector.remapped, validation: 0, source: 0)
      store64(setup.table + 10 * 16, load64(setup.table + 10 * 16) | 1 << 12)
      setup.send(10)
    })
  setup.checkFault("the blocked message is recorded", Reason.entryReserved, index: 10)
  Report.check("an index beyond the table blocks the message", staysSilent { setup.send(256) })
  setup.checkFault("the blocked message is recorded", Reason.indexBeyondTable, index: 256)
  Report.check(
    "the table's last entry delivers", arrives(Vector.remapped) { send(255, validation: 1, source: edu.source) })

  // Fault Processing Disable: the unit refuses the request, and does not record a fault.
  setup.set(11, vector: Vector.remapped, validation: 1, source: edu.source ^ 8)
  store64(setup.table + 11 * 16, load64(setup.table + 11 * 16) | 1 << 1)
  Report.check("an invalid entry with FPD blocks the message", staysSilent { setup.send(11) })
  RemappingUnit.checkNoFault("an entry with FPD records no fault")
}

private func checkFaultEvent(_ setup: Setup) {
  typealias Register = RemappingUnit.Register
  RemappingUnit.setEvent(Register.faultEventControl, vector: Vector.fault, to: LocalAPIC.identifier)
  setup.clear(12)
  Report.check("a masked fault event brings no interrupt", staysSilent { setup.send(12) })
  Report.check(
    "the masked fault event is pending",
    RemappingUnit.read32(Register.faultEventControl) & RemappingUnit.eventPending != 0)
  Report.check(
    "unmasking brings the fault event without remapping",
    arrives(Vector.fault) { RemappingUnit.write32(Register.faultEventControl, 0) })
  setup.checkFault("the fault event has its record", Reason.entryNotPresent, index: 12)
  Report.check("the next fault brings the fault event at once", arrives(Vector.fault) { setup.send(12) })
  setup.checkFault("the fault event has its record", Reason.entryNotPresent, index: 12)
  RemappingUnit.write32(Register.faultEventControl, RemappingUnit.eventMask)
}

private func check(_ edu: Edu, isExtended: Bool) {
  put(isExtended ? "32-bit destinations\n" : "8-bit destinations\n")
  let setup = Setup(edu: edu, table: Pages.take(), isExtended: isExtended)
  guard RemappingUnit.remapInterrupts(by: setup.table, isExtended: isExtended) else { return }
  checkRemapping(setup)
  checkBlocking(setup)
  checkFaultEvent(setup)
  Report.check(
    "interrupt remapping goes off", RemappingUnit.command(RemappingUnit.Command.interruptRemappingEnable, on: false))
}

func kernelMain() {
  guard let edu = Edu.find() else { return Report.fail("there is no edu") }
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.interruptRemapping) else {
    return Report.fail("the unit offers no interrupt remapping")
  }
  LocalAPIC.start()
  RemappingUnit.startQueue(isWide: false)
  enableInterrupts()
  let message = messageBase | LocalAPIC.identifier << 12
  let passes = arrives(Vector.compatible) {
    edu.setMessage(address: message, data: Vector.compatible)
    edu.raise()
  }
  Report.check("without remapping a message goes to the destination in its address", passes)
  check(edu, isExtended: false)
  if RemappingUnit.offers(RemappingUnit.extendedInterrupts) { check(edu, isExtended: true) }
  let passesAgain = arrives(Vector.compatible) {
    edu.setMessage(address: message, data: Vector.compatible)
    edu.raise()
  }
  Report.check("after remapping goes off a message goes to the destination in its address", passesAgain)
  RemappingUnit.checkNoFault("no fault record remains")
  disableInterrupts()
}
