/// Every fault that the tables can send a request into, in legacy and in scalable mode; what the record says of it; what
/// keeps one from being recorded; and the fault event. VT-d 4.1, 7.1.3 for the conditions, 7.3 for recording and 7.4 for
/// the event. `vtd-nested` has those of nested translation, `vtd-interrupts` those of interrupt requests.

private let page: UInt64 = 0x12_3456_7000
private let readOnlyPage: UInt64 = 0x12_3456_8000
private let writeOnlyPage: UInt64 = 0x12_3456_9000
private let missingPage: UInt64 = 0x12_3456_a000
private let interruptPage: UInt64 = 0x12_3456_b000
/// Where no machine of these tests has memory, and within every address width.
private let nowhere: UInt64 = 1 << 38
/// Ticks in which an interrupt that is not to come would have come.
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

  /// Does something while a word of the tables is another, and puts it back.
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

  /// A read with one word of the tables changed.
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
  RemappingUnit.checkNoFault("a good request")

  let root = load64(sources.root)
  setup.check("LRT.2: a root entry that is not present", sources.root, root & ~1, 0x01)
  setup.check("LRT.3: one with reserved bits", sources.root, root | 1 << 5, 0x0a)
  setup.check("and in its upper half", sources.root + 8, 1, 0x0a)
  setup.check("LCT.1: a context table where no memory is", sources.root, nowhere | 1, 0x09)

  let place = sources.contextEntry
  let context = load64(place)
  let upper = load64(place + 8)
  setup.check("LCT.2: a context entry that is not present", place, context & ~1, 0x02)
  setup.check("LCT.3: one with reserved bits", place, context | 1 << 4, 0x0b)
  setup.check("and in its upper half", place + 8, upper | 1 << 32, 0x0b)
  setup.check("LCT.4: an address width that is not offered", place + 8, upper & ~7 | 5, 0x03)
  setup.check("a translation type that there is not", place, context | 3 << 2, 0x03)
  if !RemappingUnit.offers(RemappingUnit.deviceTLB) {
    setup.check("one that is not offered", place, context | 1 << 2, 0x03)
  }

  setup.checkRead("LGN.1: an address beyond the width", from: 1 << 48, 0x04)
  setup.checkWrite("LGN.2: a write to a read-only page", to: readOnlyPage, 0x05)
  setup.checkWrite("a write to a page that is not present", to: missingPage, 0x05)
  setup.checkRead("LGN.3: a read of a write-only page", from: writeOnlyPage, 0x06)
  setup.checkRead("a read of a page that is not present", from: missingPage, 0x06)
  setup.checkRead("LGN.4: a page in the interrupt range", from: interruptPage, 0x0e)

  setup.check("LSS.1: a root of paging where no memory is", place, nowhere | 1, 0x07)
  let directory = tables.entry(page, level: 2)
  setup.check("a page table where no memory is", directory, nowhere | 3, 0x07)
  setup.check("LSS.2: an entry with reserved bits", directory, load64(directory) | 1 << 11, 0x0c)
  setup.check("a large page that is not aligned", directory, 1 << 12 | 0x83, 0x0c)
  setup.check(
    "PS where there are no such pages", tables.entry(page, level: 4), load64(tables.entry(page, level: 4)) | 0x80, 0x0c)

  // LRT.1, and RTA.1 where the mode can be asked for.
  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, nowhere)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.invalidate()
  setup.checkRead("LRT.1: a root table where no memory is", 0x08)
  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, sources.root)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.invalidate()

  checkSuppression(setup, entries: [(place, "FPD of a context entry suppresses")], missing: directory)
  // Not qualified: it is about the entry that would say so.
  setup.with(place, context | 2) {
    setup.check("but not what is recorded in any case", sources.root, nowhere | 1, 0x09)
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
  RemappingUnit.checkNoFault("a good request")

  let root = load64(sources.root)
  setup.check("SRT.2: a root entry that is not present", sources.root, root & ~1, 0x39)
  setup.check("SRT.3: one with reserved bits", sources.root, root | 1 << 5, 0x3a)
  setup.check("SCT.1: a context table where no memory is", sources.root, nowhere | 1, 0x40)

  let place = sources.scalableContextEntry
  let context = load64(place)
  setup.check("SCT.2: a context entry that is not present", place, context & ~1, 0x41)
  setup.check("SCT.3: one with reserved bits", place, context | 1 << 4, 0x42)
  setup.check("and in its second half", place + 16, 1, 0x42)
  if RemappingUnit.offers(RemappingUnit.ridPASID) {
    setup.check("SCT.9: RID_PASID beyond the directory", place + 8, 128 * 64, 0x48)
  }

  let directoryEntry = context & PagingTables.addressBits
  let directory = load64(directoryEntry)
  setup.check("SPD.1: a directory where no memory is", place, context & 0xfff | nowhere, 0x50)
  setup.check("SPD.2: a directory entry that is not present", directoryEntry, directory & ~1, 0x51)
  setup.check("SPD.3: one with reserved bits", directoryEntry, directory | 1 << 4, 0x52)
  setup.check("SPT.1: a PASID table where no memory is", directoryEntry, nowhere | 1, 0x58)
  let pasid = load64(entry)
  setup.check("SPT.2: a PASID entry that is not present", entry, pasid & ~1, 0x59)
  setup.check("SPT.3: one with reserved bits", entry, pasid | 1 << 5, 0x5a)
  setup.check("and in its last word", entry + 56, 1, 0x5a)
  setup.check("SPT.4: a translation type that there is not", entry, pasid & ~(7 << 6) | 5 << 6, 0x5b)
  setup.check("no translation type", entry, pasid & ~(7 << 6), 0x5b)
  if !RemappingUnit.offers(RemappingUnit.nestedTranslation) {
    setup.check("nested, where it is not offered", entry, pasid | 3 << 6, 0x5b)
  }

  checkSuppression(
    setup,
    entries: [
      (place, "FPD of a context entry suppresses"), (directoryEntry, "FPD of a directory entry suppresses"),
      (entry, "FPD of a PASID entry suppresses"),
    ], missing: (hasSecond ? tables : first).entry(page, level: 2))
  setup.with(place, context | 2) {
    setup.check("but not what is recorded in any case", sources.root, nowhere | 1, 0x40)
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
  setup.checkRead("SRT.1: a root table where no memory is", 0x38)
  // The table mode between legacy's and abort's is reserved.
  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, sources.root | 2 << 10)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.checkRead("RTA.1: a table mode that there is not", 0x30)
  RemappingUnit.write64(RemappingUnit.Register.rootTableAddress, sources.root | 1 << 10)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
  setup.invalidate()
  _ = edu.read(from: page)
  RemappingUnit.checkNoFault("a good request again")
}

private func checkScalableSecondStage(_ setup: Setup, entry: UInt64) {
  put("second stage\n")
  let pasid = load64(entry)
  setup.check("SSS.4: a root of paging where no memory is", entry, pasid & 0xfff | nowhere, 0x7b)
  let directory = setup.tables.entry(page, level: 2)
  setup.check("SSS.1: a page table where no memory is", directory, nowhere | 3, 0x78)
  setup.checkRead("SSS.2: a page that is not present", from: missingPage, 0x79)
  setup.checkWrite("a write to it", to: missingPage, 0x79)
  setup.check("SSS.3: an entry with reserved bits", directory, load64(directory) | 1 << 11, 0x7a)
  setup.checkRead("SGN.4: an address beyond the width", from: 1 << 48, 0x83)
  setup.checkWrite("SGN.6: a write to a read-only page", to: readOnlyPage, 0x85)
  setup.checkRead("SGN.7: a read of a write-only page", from: writeOnlyPage, 0x86)
  setup.checkRead("SGN.8: a page in the interrupt range", from: interruptPage, 0x87)
  setup.check("SPT.4: an address width that is not offered", entry, pasid & ~(7 << 2) | 5 << 2, 0x5b)
  if RemappingUnit.offers(RemappingUnit.secondAccessedDirty), RemappingUnit.offers(RemappingUnit.pageWalkCoherency) {
    // SSADE without PWSNP, and A to be set.
    let second = load64(entry + 8)
    setup.with(entry + 8, second & ~(1 << 23)) {
      setup.check("SSS.5: A to be set by walks that do not snoop", entry, pasid | 1 << 9, 0x7c)
    }
  }
}

private func checkFirstStage(_ setup: Setup, entry: UInt64) {
  put("first stage\n")
  let third = load64(entry + 16)
  setup.check("SFS.4: a root of paging where no memory is", entry + 16, nowhere, 0x73)
  let directory = setup.tables.entry(page, level: 2)
  setup.check("SFS.1: a page table where no memory is", directory, nowhere | 7, 0x70)
  setup.checkRead("SFS.2: a page that is not present", from: missingPage, 0x71)
  setup.check("SFS.3: a large page that is not aligned", directory, 1 << 14 | 0x87, 0x72)
  setup.checkRead("SGN.1: an address that is not canonical", from: 1 << 47, 0x80)
  setup.checkRead("SGN.2: a supervisor's page", from: writeOnlyPage, 0x81)
  setup.checkWrite("SGN.6: a write to a read-only page", to: readOnlyPage, 0x85)
  setup.checkRead("SGN.8: a page in the interrupt range", from: interruptPage, 0x87)
  setup.check("SPT.4: a paging mode that is not offered", entry + 16, third | 2 << 2, 0x5b)
  setup.check("SPT.3: reserved bits beside the root", entry + 16, third | 1 << 6, 0x5a)
  if RemappingUnit.offers(RemappingUnit.pageWalkCoherency) {
    let page4 = setup.tables.entry(page, level: 1)
    setup.with(page4, load64(page4) & ~0x60) {
      let second = load64(entry + 8)
      setup.check("SFS.9: A to be set by walks that do not snoop", entry + 8, second & ~(1 << 23), 0x90)
    }
  }
  if RemappingUnit.offers(RemappingUnit.supervisorRequests) {
    let context = setup.sources.scalableContextEntry + 8
    let pasid = load64(context)
    setup.check("SPT.6: a supervisor's requests, not enabled", context, pasid | 1 << 20, 0x5d)
    setup.with(context, pasid | 1 << 20) {
      setup.with(entry + 16, third | 1) {
        _ = setup.edu.read(from: writeOnlyPage)
        RemappingUnit.checkNoFault("enabled, they reach a supervisor's page")
        _ = setup.edu.write(to: readOnlyPage)
        RemappingUnit.checkNoFault("and write a read-only one")
      }
      setup.with(entry + 16, third | 1 << 4 | 1) {
        setup.checkWrite("but not with WPE", to: readOnlyPage, 0x85)
      }
    }
  }
}

// MARK: What is not recorded

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
    RemappingUnit.checkNoFault("and lets good requests be")
  }
}

/// Two functions, one fault record: the first fault stays, the second is lost, and that is told.
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
  Report.check("a record has the page's address and no bit below it", low == missingPage)
  Report.check("F and the reason, the source, a write, and no PASID", high == 1 << 63 | 5 << 32 | edu.source)
  Report.check("PPF is set, and points at it", status() == 2)
  RemappingUnit.write32(Register.faultStatus, 2)
  Report.check("PPF is not to be written away", status() == 2)
  RemappingUnit.write64(record + 8, 0)
  RemappingUnit.write32(record + 8, .max)
  Report.check("nor is F by a zero or by the record's other bits", RemappingUnit.read64(record + 8) == high)

  _ = other.read(from: missingPage)
  Report.check("a second fault overflows", status() == 2 | overflow)
  Report.check("and leaves the record as it is", RemappingUnit.read64(record + 8) == high)
  RemappingUnit.write32(record + 12, 1 << 31)
  Report.check("F cleared, PPF is", status() == overflow)
  _ = edu.read(from: missingPage)
  Report.check("nothing is recorded before the overflow is cleared", RemappingUnit.read64(record + 8) >> 63 == 0)
  RemappingUnit.write32(Register.faultStatus, overflow)
  Report.check("it is cleared by a one", status() == 0)
  _ = other.read(from: missingPage)
  RemappingUnit.checkFault(
    "and faults are recorded again", reason: 6, source: other.source, low: missingPage, isRead: true)
}

// MARK: The fault event

/// Whether so many interrupts come by a vector at a processor, and none elsewhere.
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

  Report.check("masked, as after reset, it does not come", control() == mask && staysSilent(after: fault))
  Report.check("but is pending", control() == mask | pending)
  Report.check(
    "unmasked, it comes", arrives(Vector.fault, at: own) { RemappingUnit.write32(Register.faultEventControl, 0) })
  Report.check("and is not pending any more", control() == 0)
  take()

  Report.check("the next fault's comes at once", arrives(Vector.fault, at: own, after: fault))
  Report.check("while one is not served, another brings none", staysSilent(after: fault))
  take()
  Report.check("served, the next does", arrives(Vector.fault, at: own, after: fault))
  take()

  RemappingUnit.write32(Register.faultEventControl, mask)
  fault()
  Report.check("masked again, it is pending", control() == mask | pending)
  take()
  Report.check("served meanwhile, it is not", control() == mask)
  Report.check("and does not come", staysSilent { RemappingUnit.write32(Register.faultEventControl, 0) })

  program(Vector.another, to: own)
  Report.check("another vector counts at once", arrives(Vector.another, at: own, after: fault))
  take()
  if let another {
    program(Vector.fault, to: another)
    Report.check("so does another processor", arrives(Vector.fault, at: another, after: fault))
    take()
  }

  // An error of the invalidation queue is a fault condition, too (7.4).
  program(Vector.fault, to: own)
  Report.check(
    "an error of the queue brings it",
    arrives(Vector.fault, at: own) {
      RemappingUnit.enqueue(0xf)
      RemappingUnit.ring()
    })
  let queueError: UInt32 = 1 << 4
  Report.check("as FSTS says", RemappingUnit.read32(Register.faultStatus) == queueError)
  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  RemappingUnit.write32(Register.faultStatus, queueError)
  Report.check("and does not when it is cleared", RemappingUnit.read32(Register.faultStatus) == 0)
  RemappingUnit.write32(Register.faultEventControl, mask)
  disableInterrupts()
}

func kernelMain() {
  guard let edu = Edu.find(), let other = Edu.find(after: edu) else { return Report.fail("there are not two edu") }
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
  RemappingUnit.checkNoFault("no fault is left")
}
