/// Tests first-stage translation: the kernel programs the unit, and edu makes the requests. VT-d 4.1, 3.6 and 9.7 for
/// the tables, 7.1.3 for the faults, 6.2 and 6.5.2.4 for the caches: an entry stays cached until it is invalidated.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-first-stage" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on -device edu,dma_mask=0xffffffffffffffff

private let sourcePage: UInt64 = 0x5a_1234_5000
private let readOnlyPage: UInt64 = 0x5a_1234_6000
private let supervisorPage: UInt64 = 0x5a_1234_7000
private let missingPage: UInt64 = 0x5a_1234_8000
/// 2 MiB.
private let largePage: UInt64 = 0x7f_c000_0000
private let marker: UInt64 = 0x0123_4567_89ab_cdef
private let other: UInt64 = 0xfedc_ba98_7654_3210

private enum Reason {
  static let pasidEntryNotPresent: UInt64 = 0x59
  static let contextEntryNotPresent: UInt64 = 0x41
  static let entryNotPresent: UInt64 = 0x71
  static let entryReserved: UInt64 = 0x72
  static let notCanonical: UInt64 = 0x80
  static let userPrivilege: UInt64 = 0x81
  static let writePermission: UInt64 = 0x85
}

private let leaf = PagingTables.present | PagingTables.writable | PagingTables.user

private struct Setup {
  let edu: Edu
  let tables: PagingTables
  let sources: SourceTables
  let pasidEntry: UInt64
  let source: UInt64
  let large: UInt64

  func has(_ bits: UInt64, _ address: UInt64, level: UInt64 = 1) -> Bool {
    load64(tables.entry(address, level: level)) & bits == bits
  }

  /// Returns whether the device reads a value at an address. The device copies it to the large page.
  func reads(_ value: UInt64, at address: UInt64) -> Bool {
    store64(large + 0x800, ~value)
    return edu.read(from: address) && edu.write(to: largePage + 0x800) && load64(large + 0x800) == value
  }
}

private func checkTranslation(_ setup: Setup) {
  let edu = setup.edu
  store64(setup.source + 0x108, marker)
  Report.check(
    "a read and a write complete", edu.read(from: sourcePage + 0x108) && edu.write(to: largePage + 0x12_3458))
  Report.check("the data arrives where the table points", load64(setup.large + 0x12_3458) == marker)
  RemappingUnit.checkNoFault("the read and the write cause no fault")
  var accessed = true
  for level in 1...UInt64(4) where !setup.has(PagingTables.accessed, sourcePage, level: level) { accessed = false }
  Report.check("the read sets A on each level", accessed)
  Report.check("the read does not set D", !setup.has(PagingTables.dirty, sourcePage))
  Report.check("the write sets A and D of the 2 MiB page", setup.has(0x60, largePage, level: 2))
  Report.check(
    "the write sets only A above the 2 MiB page", load64(setup.tables.entry(largePage, level: 3)) & 0x60 == 0x20)
  Report.check("a page without access has no A", !setup.has(PagingTables.accessed, readOnlyPage))

  // One request crosses the end of a page. The next page is elsewhere in memory.
  store64(setup.source + 0xff8, other)
  Report.check(
    "a request continues in the next page",
    edu.read(from: sourcePage + 0xff8, count: 16)
      && edu.write(to: largePage + 0x1ff8, count: 16) && load64(setup.large + 0x1ff8) == other
      && load64(setup.large + 0x2000) == marker)
  RemappingUnit.checkNoFault("the request causes no fault")
}

private func checkFaults(_ setup: Setup) {
  let edu = setup.edu
  Report.check("a refused write completes", edu.write(to: missingPage + 0x10))
  Report.check("a refused write sets FSTS.PPF", RemappingUnit.hasPendingFault)
  RemappingUnit.checkFault(
    "a write to a page that is not present is a fault", reason: Reason.entryNotPresent, source: edu.source,
    low: missingPage,
    isRead: false)
  edu.checkRead("a read of a page that is not present is a fault", from: missingPage, Reason.entryNotPresent)
  edu.checkWrite("a write without a page table is a fault", to: 1 << 40, Reason.entryNotPresent)

  let readOnly = load64(setup.tables.entry(readOnlyPage, level: 1)) & 0x000f_ffff_ffff_f000
  let before = load64(readOnly + 0x20)
  edu.checkWrite("a write to a read-only page is a fault", to: readOnlyPage + 0x20, Reason.writePermission)
  Report.check(
    "a refused write changes neither memory nor D",
    load64(readOnly + 0x20) == before && !setup.has(PagingTables.dirty, readOnlyPage))
  Report.check("a read of a read-only page succeeds", setup.reads(before, at: readOnlyPage + 0x20))
  RemappingUnit.checkNoFault("a read of a read-only page causes no fault")

  edu.checkRead("a read of a supervisor page is a fault", from: supervisorPage, Reason.userPrivilege)
  edu.checkRead("an address that is not canonical is a fault", from: 1 << 47, Reason.notCanonical)

  let entry = setup.tables.entry(missingPage, level: 2)
  let kept = load64(entry)
  store64(entry, 1 << 20 | PagingTables.large | leaf)
  edu.checkRead("an entry with reserved bits is a fault", from: missingPage | 0x1f_f000, Reason.entryReserved)
  store64(entry, kept)
}

private func checkStaleness(_ setup: Setup) {
  let edu = setup.edu
  let domain = SourceTables.domain
  let pasid = SourceTables.pasid
  let entry = setup.tables.entry(sourcePage, level: 1)
  let moved = Pages.take()
  store64(setup.source, marker)
  store64(moved, other)
  Report.check("a request caches its page", setup.reads(marker, at: sourcePage))
  store64(entry, moved | leaf)
  Report.check("a changed entry has no effect before an invalidation", setup.reads(marker, at: sourcePage))
  _ = RemappingUnit.invalidatePage(sourcePage + Pages.size, pasid: pasid, domain: domain)
  Report.check("an invalidation of the next page leaves the page cached", setup.reads(marker, at: sourcePage))
  _ = RemappingUnit.invalidatePage(sourcePage, pasid: pasid, domain: domain + 1)
  _ = RemappingUnit.invalidatePage(sourcePage, pasid: pasid + 1, domain: domain)
  Report.check("an invalidation of another domain or PASID leaves the page cached", setup.reads(marker, at: sourcePage))
  Report.check(
    "the queue completes the invalidation of the page",
    RemappingUnit.invalidatePage(sourcePage, pasid: pasid, domain: domain))
  Report.check("after the page is invalidated the new entry has effect", setup.reads(other, at: sourcePage))

  store64(entry, 0)
  Report.check("a cleared entry stays cached", setup.reads(other, at: sourcePage))
  RemappingUnit.checkNoFault("the request causes no fault")
  _ = RemappingUnit.invalidateTranslations(pasid: pasid, domain: domain)
  edu.checkRead(
    "after the PASID is invalidated, a read through a cleared entry is a fault", from: sourcePage,
    Reason.entryNotPresent)
  store64(entry, setup.source | leaf)
  Report.check("an entry that is not present is not cached", setup.reads(marker, at: sourcePage))

  let present = load64(setup.pasidEntry)
  store64(setup.pasidEntry, present & ~1)
  _ = RemappingUnit.invalidateTranslations(pasid: pasid, domain: domain)
  Report.check("a cleared PASID-table entry stays cached", setup.reads(marker, at: sourcePage))
  _ = RemappingUnit.invalidatePASID(pasid, domain: domain)
  edu.checkRead(
    "after a cleared PASID-table entry is invalidated, a read through it is a fault", from: sourcePage,
    Reason.pasidEntryNotPresent)
  store64(setup.pasidEntry, present)
  Report.check("after the entry is present again, requests are translated again", setup.reads(marker, at: sourcePage))

  let context = load64(setup.sources.scalableContextEntry)
  store64(setup.sources.scalableContextEntry, context & ~1)
  _ = RemappingUnit.invalidateContexts()
  _ = RemappingUnit.invalidatePASIDs()
  edu.checkRead("a context entry that is not present is a fault", from: sourcePage, Reason.contextEntryNotPresent)
  store64(setup.sources.scalableContextEntry, context)
  Report.check("after the entry is present again, requests are translated again", setup.reads(marker, at: sourcePage))
}

func kernelMain() {
  guard let edu = Edu.find() else { return Report.fail("there is no edu") }
  Report.check("edu is alive", edu.isAlive)
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.scalableMode),
    RemappingUnit.offers(RemappingUnit.firstStage)
  else { return Report.fail("the unit offers no first stage") }

  let tables = PagingTables(.first)
  let sources = SourceTables(source: edu.source)
  let setup = Setup(
    edu: edu, tables: tables, sources: sources, pasidEntry: sources.makeScalable(), source: Pages.take(),
    large: Pages.reserve(Pages.largeSize))
  let next = Pages.take()
  store64(next, marker)
  tables.map(sourcePage, to: setup.source, leaf)
  tables.map(readOnlyPage, to: next, leaf & ~PagingTables.writable)
  tables.map(supervisorPage, to: Pages.take(), leaf & ~PagingTables.user)
  tables.map(largePage, to: setup.large, level: 2, leaf)
  SourceTables.setFirstStage(setup.pasidEntry, table: tables.root)

  store64(setup.source, marker)
  Report.check(
    "without translation, the unit uses the requested addresses as physical ones",
    edu.read(from: setup.source) && edu.write(to: setup.large)
      && load64(setup.large) == marker)
  guard RemappingUnit.translate(root: sources.root, isScalable: true) else { return }
  checkTranslation(setup)
  checkFaults(setup)
  checkStaleness(setup)
  Report.check(
    "after translation goes off, the unit uses the requested addresses as physical ones",
    RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false) && edu.read(from: setup.source)
      && edu.write(to: setup.large) && load64(setup.large) == marker)
  RemappingUnit.checkNoFault("no fault record remains")
}
