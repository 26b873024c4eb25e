/// Tests second-stage translation in legacy mode and, if the unit has it, in scalable mode: the kernel programs the
/// unit, and edu makes the requests. VT-d 4.1, 3.7 and 9.8 for the tables, 9.1 to 9.6 for the entries that point to
/// them, 7.1.3 for the faults.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-second-stage" \
///       -device intel-iommu,x-scalable-mode=on -device edu,dma_mask=0xffffffffffffffff

private let page: UInt64 = 0x12_3456_7000
private let readOnlyPage: UInt64 = 0x12_3456_8000
private let writeOnlyPage: UInt64 = 0x12_3456_9000
private let missingPage: UInt64 = 0x12_3456_a000
/// 2 MiB.
private let largePage: UInt64 = 0x7f_c000_0000
/// A page of 1 GiB, which maps the start of the machine's memory.
private let hugePage: UInt64 = 0x55_4000_0000
private let marker: UInt64 = 0x0123_4567_89ab_cdef
private let other: UInt64 = 0xfedc_ba98_7654_3210

private let readable: UInt64 = 1 << 0
private let writable: UInt64 = 1 << 1

/// Fault reasons whose codes differ between the two modes: VT-d 7.1.3.
private struct Reasons {
  let writePermission: UInt64
  let readPermission: UInt64
  let writeMissing: UInt64
  let readMissing: UInt64
  let reserved: UInt64
  let beyondWidth: UInt64

  static let legacy = Reasons(
    writePermission: 0x05, readPermission: 0x06, writeMissing: 0x05, readMissing: 0x06, reserved: 0x0c,
    beyondWidth: 0x04)
  static let scalable = Reasons(
    writePermission: 0x85, readPermission: 0x86, writeMissing: 0x79, readMissing: 0x79, reserved: 0x7a,
    beyondWidth: 0x83)
  static let rootEntryNotPresent: UInt64 = 0x01
  static let contextEntryNotPresent: UInt64 = 0x02
  static let contextEntryInvalid: UInt64 = 0x03
  static let pasidEntryNotPresent: UInt64 = 0x59
}

private struct Setup {
  let edu: Edu
  let tables = PagingTables(.second)
  let small = Pages.take()
  let readOnly = Pages.take()
  let writeOnly = Pages.take()
  let large = Pages.reserve(Pages.largeSize)
  let reasons: Reasons

  init(edu: Edu, reasons: Reasons) {
    self.edu = edu
    self.reasons = reasons
    tables.map(page, to: small, readable | writable)
    tables.map(readOnlyPage, to: readOnly, readable)
    tables.map(writeOnlyPage, to: writeOnly, writable)
    tables.map(largePage, to: large, level: 2, readable | writable)
    tables.map(hugePage, to: 0, level: 3, readable | writable)
    store64(small, marker)
    store64(readOnly, other)
  }

  /// Returns whether the device reads a value at an address. The device copies it to the large page.
  func reads(_ value: UInt64, at address: UInt64) -> Bool {
    store64(large + 0x800, ~value)
    return edu.read(from: address) && edu.write(to: largePage + 0x800) && load64(large + 0x800) == value
  }
}

private func checkTranslation(_ setup: Setup) {
  let edu = setup.edu
  Report.check("a read and a write complete", edu.read(from: page) && edu.write(to: largePage + 0x12_3450))
  Report.check("the data arrives where the table points", load64(setup.large + 0x12_3450) == marker)
  Report.check(
    "a 1 GiB page translates",
    edu.write(to: hugePage + setup.large + 0x1_0008)
      && load64(setup.large + 0x1_0008) == marker)
  Report.check("a read-only page can be read", setup.reads(other, at: readOnlyPage))
  Report.check(
    "a write-only page can be written", edu.write(to: writeOnlyPage + 8) && load64(setup.writeOnly + 8) == other)
  RemappingUnit.checkNoFault("none of these requests causes a fault")
}

private func checkFaults(_ setup: Setup) {
  let reasons = setup.reasons
  setup.edu.checkWrite("a write to a page that is not present is a fault", to: missingPage + 8, reasons.writeMissing)
  setup.edu.checkRead("a read of a page that is not present is a fault", from: missingPage + 8, reasons.readMissing)
  setup.edu.checkRead("a read without a page table is a fault", from: 1 << 40, reasons.readMissing)
  setup.edu.checkWrite("a write to a read-only page is a fault", to: readOnlyPage, reasons.writePermission)
  Report.check("a refused write changes no memory", load64(setup.readOnly) == other)
  setup.edu.checkRead("a read of a write-only page is a fault", from: writeOnlyPage, reasons.readPermission)
  setup.edu.checkRead("an address beyond the width is a fault", from: 1 << 48, reasons.beyondWidth)
  let entry = setup.tables.entry(missingPage, level: 1)
  store64(entry, setup.small | readable | 1 << 51)
  setup.edu.checkRead("an entry with reserved bits is a fault", from: missingPage, reasons.reserved)
  store64(entry, 0)
}

private func checkStaleness(_ setup: Setup) {
  let domain = SourceTables.domain
  let entry = setup.tables.entry(page, level: 1)
  let moved = Pages.take()
  store64(moved, other)
  Report.check("a request caches its page", setup.reads(marker, at: page))
  store64(entry, moved | readable | writable)
  Report.check("a changed entry has no effect before an invalidation", setup.reads(marker, at: page))
  _ = RemappingUnit.invalidatePage(page + Pages.size, domain: domain)
  _ = RemappingUnit.invalidatePage(page, domain: domain + 1)
  Report.check("an invalidation of another page or domain leaves the page cached", setup.reads(marker, at: page))
  Report.check("the queue completes the invalidation of the page", RemappingUnit.invalidatePage(page, domain: domain))
  Report.check("after the page is invalidated the new entry has effect", setup.reads(other, at: page))
  store64(entry, 0)
  Report.check("a cleared entry stays cached", setup.reads(other, at: page))
  RemappingUnit.checkNoFault("the request causes no fault")
  _ = RemappingUnit.invalidateTranslations(domain: domain)
  setup.edu.checkRead(
    "after the domain is invalidated, a read through a cleared entry is a fault", from: page, setup.reasons.readMissing)
  store64(entry, setup.small | readable | writable)
  Report.check("an entry that is not present is not cached", setup.reads(marker, at: page))
}

private func checkLegacy(_ edu: Edu) {
  put("legacy mode\n")
  let setup = Setup(edu: edu, reasons: .legacy)
  let sources = SourceTables(source: edu.source)
  sources.setLegacy(type: 0, table: setup.tables.root)
  guard RemappingUnit.translate(root: sources.root, isScalable: false) else { return }
  checkTranslation(setup)
  checkFaults(setup)
  checkStaleness(setup)

  let context = load64(sources.contextEntry)
  store64(sources.contextEntry, context & ~1)
  Report.check("a cleared context entry stays cached", setup.reads(marker, at: page))
  _ = RemappingUnit.invalidateContexts()
  _ = RemappingUnit.invalidateTranslations()
  setup.edu.checkRead(
    "after a cleared entry is invalidated, a read through it is a fault", from: page, Reasons.contextEntryNotPresent)
  let width = load64(sources.contextEntry + 8)
  store64(sources.contextEntry + 8, width & ~7 | 5)
  store64(sources.contextEntry, context)
  setup.edu.checkRead("a width that is not offered is a fault", from: page, Reasons.contextEntryInvalid)
  store64(sources.contextEntry + 8, width)
  let root = load64(sources.root)
  store64(sources.root, 0)
  _ = RemappingUnit.invalidateContexts()
  setup.edu.checkRead("a root entry that is not present is a fault", from: page, Reasons.rootEntryNotPresent)
  store64(sources.root, root)
  Report.check("after the entry is present again, requests are translated again", setup.reads(marker, at: page))

  guard RemappingUnit.offers(RemappingUnit.passThrough) else { return }
  sources.setLegacy(type: 2, table: 0)
  _ = RemappingUnit.invalidateContexts()
  _ = RemappingUnit.invalidateTranslations()
  Report.check(
    "with pass-through, the unit uses the requested addresses as physical ones",
    edu.read(from: setup.readOnly) && edu.write(to: setup.large + 16) && load64(setup.large + 16) == other)
  RemappingUnit.checkNoFault("the request causes no fault")
}

private func checkScalable(_ edu: Edu) {
  put("scalable mode\n")
  let setup = Setup(edu: edu, reasons: .scalable)
  let sources = SourceTables(source: edu.source)
  let entry = sources.makeScalable()
  SourceTables.setSecondStage(entry, table: setup.tables.root)
  guard RemappingUnit.translate(root: sources.root, isScalable: true) else { return }
  checkTranslation(setup)
  checkFaults(setup)
  checkStaleness(setup)

  let present = load64(entry)
  store64(entry, present & ~1)
  Report.check("a cleared PASID-table entry stays cached", setup.reads(marker, at: page))
  _ = RemappingUnit.invalidatePASID(SourceTables.pasid, domain: SourceTables.domain)
  setup.edu.checkRead(
    "after a cleared entry is invalidated, a read through it is a fault", from: page, Reasons.pasidEntryNotPresent)
  store64(entry, present)
  Report.check("after the entry is present again, requests are translated again", setup.reads(marker, at: page))

  guard RemappingUnit.offers(RemappingUnit.passThrough) else { return }
  SourceTables.setPassThrough(entry)
  _ = RemappingUnit.invalidatePASIDs()
  _ = RemappingUnit.invalidateTranslations()
  Report.check(
    "with pass-through, the unit uses the requested addresses as physical ones",
    edu.read(from: setup.readOnly) && edu.write(to: setup.large + 16) && load64(setup.large + 16) == other)
  RemappingUnit.checkNoFault("the request causes no fault")
}

func kernelMain() {
  guard let edu = Edu.find() else { return Report.fail("there is no edu") }
  guard RemappingUnit.isThere else { return Report.fail("there is no VT-d unit") }
  checkLegacy(edu)
  if RemappingUnit.offers(RemappingUnit.scalableMode), RemappingUnit.offers(RemappingUnit.secondStage) {
    checkScalable(edu)
  }
  RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false)
}
