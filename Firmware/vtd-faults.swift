/// Tests every fault that the tables can cause, in legacy and in scalable mode; the content of fault records; the FPD
/// bits, which suppress a record; and the fault event. VT-d 4.1, 7.1.3 for the conditions, 7.2 for recording and 7.3
/// for the event. `vtd-nested` has the faults of nested translation, `vtd-interrupts` those of interrupt requests.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-faults" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on,x-nested=on \
///       -device edu,dma_mask=0xffffffffffffffff -device edu,dma_mask=0xffffffffffffffff

private let page: UInt64 = 0x12_3456_7000
private let readOnlyPage: UInt64 = 0x12_3456_8000
private let writeOnlyPage: UInt64 = 0x12_3456_9000
private let missingPage: UInt64 = 0x12_3456_a000
private let interruptPage: UInt64 = 0x12_3456_b000
/// No machine of these tests has memory at this address. It fits into every address width.
private let nowhere: UInt64 = 1 << 38
/// The ticks that a check waits before it concludes that no interrupt comes.
private let silence: UInt64 = 20_000_000

private enum Vector {
  static let fault: UInt32 = 0x53
  static let another: UInt32 = 0x54
}

private struct Setup {
  let edu: Edu
  let isScalable: Bool
  let sources: SourceTables
  let tables: PagingTables

  func invalidate() { RemappingUnit.invalidateEverything(isScalable: isScalable) }

  /// Runs the body while a word of the tables has another value, and restores the word.
  func with(_ place: UInt64, _ value: UInt64, _ body: () -> Void) {
    let kept = load64(place)
    store64(place, value)
    invalidate()
    body()
    store64(place, kept)
    invalidate()
  }

  func checkRead(_ name: StaticString, from address: UInt64 = page, _ reason: UInt64) {
    edu.checkRead(name, from: address + 8, reason)
  }

  func checkWrite(_ name: StaticString, to address: UInt64 = page, _ reason: UInt64) {
    edu.checkWrite(name, to: address + 8, reason)
  }

  /// Checks a read while one word of the tables has another value.
  func check(_ name: StaticString, _ place: UInt64, _ value: UInt64, _ reason: UInt64) {
    with(place, value) { checkRead(name, reason) }
  }
}

private func mapSecondStage(_ tables: PagingTables) {
  tables.map(page, to: Pages.take(), 3)
  tables.map(readOnlyPage, to: Pages.take(), PagingTables.readable)
  tables.map(writeOnlyPage, to: Pages.take(), PagingTables.writable)
  tables.map(interruptPage, to: 0xfee0_0000, 3)
}

// MARK: Legacy mode

private func checkLegacy(_ edu: Edu) {
  put("legacy mode\n")
  let tables = PagingTables(.second)
  mapSecondStage(tables)
  let sources = SourceTables(source: edu.source)
  sources.setLegacy(type: 0, table: tables.root)
  let setup = Setup(edu: edu, isScalable: false, sources: sources, tables: tables)
  guard RemappingUnit.translate(root: sources.root, isScalable: false) else { return }
  _ = edu.read(from: page)
  RemappingUnit.checkNoFault("a valid request causes no fault")

  let root = load64(sources.root)
  setup.check("LRT.2: a root entry that is not present is a fault", sources.root, root & ~1, 0x01)
  setup.check("LRT.3: a root entry with reserved bits is a fault", sources.root, root | 1 << 5, 0x0a)
  setup.check("LRT.3: reserved bits in a root entry's upper half are a fault", sources.root + 8, 1, 0x0a)
  setup.check("LCT.1: a context table at an address without memory is a fault", sources.root, nowhere | 1, 0x09)

  let place = sources.contextEntry
  let context = load64(place)
  let upper = load64(place + 8)
  setup.check("LCT.2: a context entry that is not present is a fault", place, context & ~1, 0x02)
  setup.check("LCT.3: a context entry with reserved bits is a fault", place, context | 1 << 4, 0x0b)
  setup.check("LCT.3: reserved bits in a context entry's upper half are a fault", place + 8, upper | 1 << 32, 0x0b)
  setup.check("LCT.4: an address width that is not offered is a fault", place + 8, upper & ~7 | 5, 0x03)
  setup.check("an undefined translation type is a fault", place, context | 3 << 2, 0x03)
  if !RemappingUnit.offers(RemappingUnit.deviceTLB) {
    setup.check("a translation type that is not offered is a fault", place, context | 1 << 2, 0x03)
  }

  setup.checkRead("LGN.1: an address beyond the width is a fault", from: 1 << 48, 0x04)
  setup.checkWrite("LGN.2: a write to a read-only page is a fault", to: readOnlyPage, 0x05)
  setup.checkWrite("a write to a page that is not present is a fault", to: missingPage, 0x05)
  setup.checkRead("LGN.3: a read of a write-only page is a fault", from: writeOnlyPage, 0x06)
  setup.checkRead("a read of a page that is not present is a fault", from: missingPage, 0x06)
  setup.checkRead("LGN.4: a page in the interrupt range is a fault", from: interruptPage, 0x0e)

  setup.check("LSS.1: a paging root without memory is a fault", place, nowhere | 1, 0x07)
  let directory = tables.entry(page, level: 2)
  setup.check("a page table without memory is a fault", directory, nowhere | 3, 0x07)
  setup.check("LSS.2: an entry with reserved bits is a fault", directory, load64(directory) | 1 << 11, 0x0c)
  setup.check("a large page that is not aligned is a fault", directory, 1 << 12 | 0x83, 0x0c)
  setup.check(
    "PS at a level without large pages is a fault", tables.entry(page, level: 4),
    load64(tables.entry(page, level: 4)) | 0x80, 0x0c)

  // LRT.1. RTA.1 is below, in scalable mode.
  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, nowhere)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.invalidate()
  setup.checkRead("LRT.1: a root table at an address without memory is a fault", 0x08)
  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, sources.root)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.invalidate()

  checkSuppression(setup, entries: [(place, "FPD of a context entry suppresses the record")], missing: directory)
  // FPD suppresses only qualified faults. A fault before the unit reads the entry with FPD is not qualified.
  setup.with(place, context | 2) {
    setup.check("FPD does not suppress a fault that occurs before its entry is read", sources.root, nowhere | 1, 0x09)
  }
}

// MARK: Scalable mode

private func checkScalable(_ edu: Edu) {
  put("scalable mode\n")
  let tables = PagingTables(.second)
  mapSecondStage(tables)
  let sources = SourceTables(source: edu.source)
  let entry = sources.makeScalable()
  let setup = Setup(edu: edu, isScalable: true, sources: sources, tables: tables)
  let hasSecond = RemappingUnit.offers(RemappingUnit.secondStage)
  let first = PagingTables(.first)
  let leaf = PagingTables.present | PagingTables.writable | PagingTables.user
  first.map(page, to: Pages.take(), leaf)
  first.map(readOnlyPage, to: Pages.take(), leaf & ~PagingTables.writable)
  first.map(writeOnlyPage, to: Pages.take(), leaf & ~PagingTables.user)
  first.map(interruptPage, to: 0xfee0_0000, leaf)
  if hasSecond {
    SourceTables.setSecondStage(entry, table: tables.root)
  } else {
    SourceTables.setFirstStage(entry, table: first.root)
  }
  guard RemappingUnit.translate(root: sources.root, isScalable: true) else { return }
  _ = edu.read(from: page)
  RemappingUnit.checkNoFault("a valid request causes no fault")

  let root = load64(sources.root)
  setup.check("SRT.2: a root entry that is not present is a fault", sources.root, root & ~1, 0x39)
  setup.check("SRT.3: a root entry with reserved bits is a fault", sources.root, root | 1 << 5, 0x3a)
  setup.check("SCT.1: a context table without memory is a fault", sources.root, nowhere | 1, 0x40)

  let place = sources.scalableContextEntry
  let context = load64(place)
  setup.check("SCT.2: a context entry that is not present is a fault", place, context & ~1, 0x41)
  setup.check("SCT.3: a context entry with reserved bits is a fault", place, context | 1 << 4, 0x42)
  setup.check("SCT.3: reserved bits in a context entry's second half are a fault", place + 16, 1, 0x42)
  if RemappingUnit.offers(RemappingUnit.ridPASID) {
    setup.check("SCT.9: RID_PASID beyond the directory is a fault", place + 8, 128 * 64, 0x48)
  }

  let directoryEntry = context & PagingTables.addressBits
  let directory = load64(directoryEntry)
  setup.check("SPD.1: a PASID directory without memory is a fault", place, context & 0xfff | nowhere, 0x50)
  setup.check("SPD.2: a directory entry that is not present is a fault", directoryEntry, directory & ~1, 0x51)
  setup.check("SPD.3: a directory entry with reserved bits is a fault", directoryEntry, directory | 1 << 4, 0x52)
  setup.check("SPT.1: a PASID table without memory is a fault", directoryEntry, nowhere | 1, 0x58)
  let pasid = load64(entry)
  setup.check("SPT.2: a PASID entry that is not present is a fault", entry, pasid & ~1, 0x59)
  setup.check("SPT.3: a PASID entry with reserved bits is a fault", entry, pasid | 1 << 5, 0x5a)
  setup.check("SPT.3: reserved bits in a PASID-table entry's last word are a fault", entry + 56, 1, 0x5a)
  setup.check("SPT.4: an undefined translation type is a fault", entry, pasid & ~(7 << 6) | 5 << 6, 0x5b)
  setup.check("SPT.4: translation type 0 is a fault", entry, pasid & ~(7 << 6), 0x5b)
  if !RemappingUnit.offers(RemappingUnit.nestedTranslation) {
    setup.check("SPT.4: nested translation that is not offered is a fault", entry, pasid | 3 << 6, 0x5b)
  }

  checkSuppression(
    setup,
    entries: [
      (place, "FPD of a context entry suppresses the record"),
      (directoryEntry, "FPD of a directory entry suppresses the record"),
      (entry, "FPD of a PASID entry suppresses the record"),
    ], missing: (hasSecond ? tables : first).entry(page, level: 2))
  setup.with(place, context | 2) {
    setup.check("FPD does not suppress a fault that occurs before its entry is read", sources.root, nowhere | 1, 0x40)
  }

  if hasSecond { checkScalableSecondStage(setup, entry: entry) }
  if RemappingUnit.offers(RemappingUnit.firstStage) {
    SourceTables.setFirstStage(entry, table: first.root)
    setup.invalidate()
    checkFirstStage(
      Setup(edu: edu, isScalable: true, sources: sources, tables: first), entry: entry)
  }

  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, nowhere | 1 << 10)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.invalidate()
  setup.checkRead("SRT.1: a root table without memory is a fault", 0x38)
  // Table mode 10 is reserved.
  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, sources.root | 2 << 10)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.checkRead("RTA.1: a reserved table mode is a fault", 0x30)
  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, sources.root | 1 << 10)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.invalidate()
  _ = edu.read(from: page)
  RemappingUnit.checkNoFault("after the table mode is restored, a valid request causes no fault")
}

private func checkScalableSecondStage(_ setup: Setup, entry: UInt64) {
  put("second stage\n")
  let pasid = load64(entry)
  setup.check("SSS.4: a paging root without memory is a fault", entry, pasid & 0xfff | nowhere, 0x7b)
  let directory = setup.tables.entry(page, level: 2)
  setup.check("SSS.1: a page table without memory is a fault", directory, nowhere | 3, 0x78)
  setup.checkRead("SSS.2: a read of a page that is not present is a fault", from: missingPage, 0x79)
  setup.checkWrite("SSS.2: a write to a page that is not present is a fault", to: missingPage, 0x79)
  setup.check("SSS.3: an entry with reserved bits is a fault", directory, load64(directory) | 1 << 11, 0x7a)
  setup.checkRead("SGN.4: an address beyond the width is a fault", from: 1 << 48, 0x83)
  setup.checkWrite("SGN.6: a write to a read-only page is a fault", to: readOnlyPage, 0x85)
  setup.checkRead("SGN.7: a read of a write-only page is a fault", from: writeOnlyPage, 0x86)
  setup.checkRead("SGN.8: a page in the interrupt range is a fault", from: interruptPage, 0x87)
  setup.check("SPT.4: an address width that is not offered is a fault", entry, pasid & ~(7 << 2) | 5 << 2, 0x5b)
  if RemappingUnit.offers(RemappingUnit.secondAccessedDirty), RemappingUnit.offers(RemappingUnit.pageWalkCoherency) {
    // SSADE is set, PWSNP is clear, and the walk must set A.
    let second = load64(entry + 8)
    setup.with(entry + 8, second & ~(1 << 23)) {
      setup.check("SSS.5: a walk without snooping that must set A is a fault", entry, pasid | 1 << 9, 0x7c)
    }
  }
}

private func checkFirstStage(_ setup: Setup, entry: UInt64) {
  put("first stage\n")
  let third = load64(entry + 16)
  setup.check("SFS.4: a paging root without memory is a fault", entry + 16, nowhere, 0x73)
  let directory = setup.tables.entry(page, level: 2)
  setup.check("SFS.1: a page table without memory is a fault", directory, nowhere | 7, 0x70)
  setup.checkRead("SFS.2: a page that is not present is a fault", from: missingPage, 0x71)
  setup.check("SFS.3: a large page that is not aligned is a fault", directory, 1 << 14 | 0x87, 0x72)
  setup.checkRead("SGN.1: an address that is not canonical is a fault", from: 1 << 47, 0x80)
  setup.checkRead("SGN.2: a read of a supervisor page is a fault", from: writeOnlyPage, 0x81)
  setup.checkWrite("SGN.6: a write to a read-only page is a fault", to: readOnlyPage, 0x85)
  setup.checkRead("SGN.8: a page in the interrupt range is a fault", from: interruptPage, 0x87)
  setup.check("SPT.4: a paging mode that is not offered is a fault", entry + 16, third | 2 << 2, 0x5b)
  setup.check("SPT.3: reserved bits next to the root are a fault", entry + 16, third | 1 << 6, 0x5a)
  if RemappingUnit.offers(RemappingUnit.pageWalkCoherency) {
    let page4 = setup.tables.entry(page, level: 1)
    setup.with(page4, load64(page4) & ~0x60) {
      let second = load64(entry + 8)
      setup.check("SFS.9: a walk without snooping that must set A is a fault", entry + 8, second & ~(1 << 23), 0x90)
    }
  }
  if RemappingUnit.offers(RemappingUnit.supervisorRequests) {
    let context = setup.sources.scalableContextEntry + 8
    let pasid = load64(context)
    setup.check("SPT.6: a supervisor request without SRE is a fault", context, pasid | 1 << 20, 0x5d)
    setup.with(context, pasid | 1 << 20) {
      setup.with(entry + 16, third | 1) {
        _ = setup.edu.read(from: writeOnlyPage)
        RemappingUnit.checkNoFault("with SRE a supervisor request reads a supervisor page")
        _ = setup.edu.write(to: readOnlyPage)
        RemappingUnit.checkNoFault("with SRE a supervisor request writes a read-only page")
      }
      setup.with(entry + 16, third | 1 << 4 | 1) {
        setup.checkWrite("SGN.6: with WPE a supervisor's write to a read-only page is a fault", to: readOnlyPage, 0x85)
      }
    }
  }
}

// MARK: Suppressed records

/// - Parameter missing: a paging entry on the way to the page.
private func checkSuppression(
  _ setup: Setup, entries: InlineArray<1, (place: UInt64, name: StaticString)>, missing: UInt64
) {
  for index in entries.indices { checkSuppression(setup, entries[index].place, entries[index].name, missing) }
}

private func checkSuppression(
  _ setup: Setup, entries: InlineArray<3, (place: UInt64, name: StaticString)>, missing: UInt64
) {
  for index in entries.indices { checkSuppression(setup, entries[index].place, entries[index].name, missing) }
}

private func checkSuppression(_ setup: Setup, _ place: UInt64, _ name: StaticString, _ missing: UInt64) {
  setup.with(place, load64(place) | 2) {
    setup.with(missing, 0) {
      _ = setup.edu.read(from: page)
      RemappingUnit.checkNoFault(name)
    }
    _ = setup.edu.read(from: page)
    RemappingUnit.checkNoFault("FPD does not affect valid requests")
  }
}

/// Checks faults of two functions with the unit's only fault record: the first fault stays, and the second sets PFO.
private func checkOverflow(_ edu: Edu, _ other: Edu) {
  put("recording\n")
  typealias Register = RemappingUnit.Register
  let overflow: UInt32 = 1
  let sources = SourceTables(source: edu.source)
  let tables = PagingTables(.second)
  mapSecondStage(tables)
  sources.setLegacy(type: 0, table: tables.root)
  sources.of(source: other.source).setLegacy(type: 0, table: tables.root, domain: 7)
  guard RemappingUnit.translate(root: sources.root, isScalable: false) else { return }
  func status() -> UInt32 { RemappingUnit.read32(Register.faultStatus) }

  _ = edu.write(to: missingPage + 0xabc)
  let record = RemappingUnit.faultRecord
  let low = RemappingUnit.read64(record)
  let high = RemappingUnit.read64(record + 8)
  Report.check("a record has the page's address, without the low 12 bits", low == missingPage)
  Report.check("a record has F, the reason, the source, a write, and no PASID", high == 1 << 63 | 5 << 32 | edu.source)
  Report.check("PPF is set and FRI points at the record", status() == 2)
  RemappingUnit.write32(Register.faultStatus, 2)
  Report.check("a write does not clear PPF", status() == 2)
  RemappingUnit.write64(record + 8, 0)
  RemappingUnit.write32(record + 8, .max)
  Report.check(
    "a write of a zero to F, or of ones to the record's other bits, does not clear F",
    RemappingUnit.read64(record + 8) == high)

  _ = other.read(from: missingPage)
  Report.check("a second fault sets PFO", status() == 2 | overflow)
  Report.check("a second fault does not change the record", RemappingUnit.read64(record + 8) == high)
  RemappingUnit.write32(record + 12, 1 << 31)
  Report.check("clearing F clears PPF", status() == overflow)
  _ = edu.read(from: missingPage)
  Report.check("the unit records nothing before PFO is cleared", RemappingUnit.read64(record + 8) >> 63 == 0)
  RemappingUnit.write32(Register.faultStatus, overflow)
  Report.check("writing a one clears PFO", status() == 0)
  _ = other.read(from: missingPage)
  RemappingUnit.checkFault(
    "after PFO is cleared the unit records faults again", reason: 6, source: other.source, low: missingPage,
    isRead: true)
}

// MARK: The fault event

/// Returns whether exactly one interrupt comes, with this vector and at this processor.
private func arrives(_ vector: UInt32, at processor: UInt32, after action: () -> Void) -> Bool {
  let before = Interrupts.count(vector, on: processor)
  let all = Interrupts.count(Vector.fault) &+ Interrupts.count(Vector.another)
  action()
  let came = wait(ticks: RemappingUnit.patience) { Interrupts.count(vector, on: processor) != before }
  return came && Interrupts.count(Vector.fault) &+ Interrupts.count(Vector.another) == all &+ 1
}

private func staysSilent(after action: () -> Void) -> Bool {
  let all = Interrupts.count(Vector.fault) &+ Interrupts.count(Vector.another)
  action()
  return !wait(ticks: silence) { Interrupts.count(Vector.fault) &+ Interrupts.count(Vector.another) != all }
}

private func program(_ vector: UInt32, to processor: UInt32) {
  RemappingUnit.setEvent(RemappingUnit.Register.faultEventControl, vector: vector, to: processor)
}

private func checkEvent(_ edu: Edu, another: UInt32?) {
  put("the fault event\n")
  typealias Register = RemappingUnit.Register
  let mask = RemappingUnit.eventMask
  let pending = RemappingUnit.eventPending
  func control() -> UInt32 { RemappingUnit.read32(Register.faultEventControl) }
  func fault() { _ = edu.read(from: missingPage) }
  func take() { _ = RemappingUnit.takeFault() }
  let own = LocalAPIC.identifier
  program(Vector.fault, to: own)
  enableInterrupts()

  Report.check(
    "the fault event is masked after reset and does not come", control() == mask && staysSilent(after: fault))
  Report.check("the masked fault event is pending", control() == mask | pending)
  Report.check(
    "unmasking brings the fault event",
    arrives(Vector.fault, at: own) { RemappingUnit.write32(Register.faultEventControl, 0) })
  Report.check("the delivered fault event is not pending", control() == 0)
  take()

  Report.check("the next fault brings the event at once", arrives(Vector.fault, at: own, after: fault))
  Report.check("a fault before the record is cleared brings no event", staysSilent(after: fault))
  take()
  Report.check(
    "after the record is cleared the next fault brings the event", arrives(Vector.fault, at: own, after: fault))
  take()

  RemappingUnit.write32(Register.faultEventControl, mask)
  fault()
  Report.check("a fault makes the event pending once the event is masked again", control() == mask | pending)
  take()
  Report.check("clearing the record clears the pending event", control() == mask)
  Report.check("the cleared event does not come", staysSilent { RemappingUnit.write32(Register.faultEventControl, 0) })

  program(Vector.another, to: own)
  Report.check("a new vector of the event has effect at once", arrives(Vector.another, at: own, after: fault))
  take()
  if let another {
    program(Vector.fault, to: another)
    Report.check(
      "a new destination processor of the event has effect at once", arrives(Vector.fault, at: another, after: fault))
    take()
  }

  // An error of the invalidation queue is also a fault condition (7.3).
  program(Vector.fault, to: own)
  Report.check(
    "a queue error brings the fault event",
    arrives(Vector.fault, at: own) {
      RemappingUnit.enqueue(0xf)
      RemappingUnit.ring()
    })
  let queueError: UInt32 = 1 << 4
  Report.check("a queue error sets IQE", RemappingUnit.read32(Register.faultStatus) == queueError)
  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  RemappingUnit.write32(Register.faultStatus, queueError)
  Report.check("writing a one clears IQE", RemappingUnit.read32(Register.faultStatus) == 0)
  RemappingUnit.write32(Register.faultEventControl, mask)
  disableInterrupts()
}

func kernelMain() {
  guard let edu = Edu.find(), let other = Edu.find(after: edu) else {
    return Report.fail("there are fewer than two edu devices")
  }
  guard RemappingUnit.isThere else { return Report.fail("there is no VT-d unit") }
  LocalAPIC.start()
  let processors = Multiboot.number("cpus") ?? 1
  var another: UInt32?
  if processors > 1 {
    another = Processors.startAnother(patience: RemappingUnit.patience)
    Report.check("another processor starts", another != nil)
  }
  checkLegacy(edu)
  if RemappingUnit.offers(RemappingUnit.scalableMode) { checkScalable(edu) }
  checkOverflow(edu, other)
  checkEvent(edu, another: another)
  RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false)
  RemappingUnit.checkNoFault("no fault record remains")
}
