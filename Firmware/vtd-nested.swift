/// Tests nested translation: first-stage tables at guest physical addresses, which a second stage maps to other
/// addresses. VT-d 4.1, 3.8 for the walk, 3.6.2 and 3.7.2 for accessed and dirty bits, 7.1.3 for the faults of both
/// stages.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-nested" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on,x-nested=on -device edu,dma_mask=0xffffffffffffffff

/// The address of the first guest physical page. The machine has no physical memory at this address. The address has at
/// most 39 bits, so a second stage of three levels reaches it.
private let guestBase: UInt64 = 0x30_0000_0000
private let page: UInt64 = 0x5a_1234_5000
private let readOnlyPage: UInt64 = 0x5a_1234_6000
private let overReadOnlyPage: UInt64 = 0x5a_1234_7000
private let overWriteOnlyPage: UInt64 = 0x5a_1234_8000
private let overMissingPage: UInt64 = 0x5a_1234_9000
private let missingPage: UInt64 = 0x5a_1234_a000
private let freshPage: UInt64 = 0x5a_1234_b000
/// 2 MiB in the first stage, 4 KiB pages in the second.
private let splitPage: UInt64 = 0x7f_c000_0000
/// 4 KiB in the first stage, 2 MiB in the second.
private let withinLargePage: UInt64 = 0x5a_2000_0000
/// 2 MiB in both stages.
private let largePage: UInt64 = 0x7f_8000_0000
private let marker: UInt64 = 0x0123_4567_89ab_cdef
private let other: UInt64 = 0xfedc_ba98_7654_3210

private let leaf = PagingTables.present | PagingTables.writable | PagingTables.user
private let readWrite = PagingTables.readable | PagingTables.writable

private enum Reason {
  static let entryAccess: UInt64 = 0x70
  static let entryNotPresent: UInt64 = 0x71
  static let entryReserved: UInt64 = 0x72
  static let rootAccess: UInt64 = 0x73
  static let entryBeyondWidth: UInt64 = 0x74
  static let rootReadPermission: UInt64 = 0x75
  static let entryReadPermission: UInt64 = 0x76
  static let entryWritePermission: UInt64 = 0x77
  static let secondEntryAccess: UInt64 = 0x78
  static let secondNotPresent: UInt64 = 0x79
  static let secondReserved: UInt64 = 0x7a
  static let secondRootAccess: UInt64 = 0x7b
  static let outputBeyondWidth: UInt64 = 0x84
  static let writePermission: UInt64 = 0x85
  static let readPermission: UInt64 = 0x86
  static let interruptAddress: UInt64 = 0x87
}

/// The guest's memory behind the second stage, and the first-stage tables in it.
private struct Guest {
  let second: PagingTables
  /// A guest physical address.
  let root: UInt64
  nonisolated(unsafe) private static var next = guestBase

  init() {
    second = PagingTables(.second)
    root = Self.take(in: second)
  }

  /// Takes a guest physical page. Pages are not adjacent, so a request past the end of a page does not reach another
  /// page.
  static func take(in second: PagingTables, _ bits: UInt64 = readWrite) -> UInt64 {
    let address = next
    next += 3 * Pages.size
    second.map(address, to: Pages.take(), bits)
    return address
  }

  func take(_ bits: UInt64 = readWrite) -> UInt64 { Self.take(in: second, bits) }

  /// Returns the address of the entry that maps a guest physical page of 4 KiB.
  func secondEntry(_ address: UInt64) -> UInt64 { second.entry(address, level: 1) }

  /// Returns the physical address of a guest physical one.
  func physical(_ address: UInt64) -> UInt64 {
    load64(secondEntry(address)) & PagingTables.addressBits | address & (Pages.size - 1)
  }

  /// Returns the guest physical address of the table that has the entry of a level.
  func table(_ address: UInt64, level: UInt64) -> UInt64 {
    var table = root
    var current: UInt64 = 4
    while current > level {
      let place = physical(table) + (address >> (12 + 9 * (current - 1)) & 0x1ff) * 8
      if load64(place) == 0 { store64(place, take() | leaf) }
      table = load64(place) & PagingTables.addressBits
      current -= 1
    }
    return table
  }

  /// Returns the physical address of the first-stage entry of a level.
  func entry(_ address: UInt64, level: UInt64 = 1) -> UInt64 {
    physical(table(address, level: level)) + (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8
  }

  func map(_ address: UInt64, to guest: UInt64, level: UInt64 = 1, _ bits: UInt64 = leaf) {
    store64(entry(address, level: level), guest | bits | (level > 1 ? PagingTables.large : 0))
  }
}

private struct Setup {
  let edu: Edu
  let guest = Guest()
  let sources: SourceTables
  let pasidEntry: UInt64
  /// The guest physical address of the page that the device reads.
  let data: UInt64
  let readOnly: UInt64
  /// The physical address of 2 MiB in one piece.
  let large: UInt64

  init(edu: Edu) {
    self.edu = edu
    sources = SourceTables(source: edu.source)
    pasidEntry = sources.makeScalable()
    data = guest.take()
    readOnly = guest.take()
    large = Pages.reserve(Pages.largeSize)
  }

  var result: UInt64 { load64(large + 0x800) }

  /// Returns whether the device reads a value at an address. The device copies it to the large page.
  func reads(_ value: UInt64, at address: UInt64) -> Bool {
    store64(large + 0x800, ~value)
    return edu.copy(from: address, to: largePage + 0x800) && result == value
  }

  /// Invalidates the whole domain, so that the next requests use the tables as they are now.
  func forget() { _ = RemappingUnit.invalidateTranslations(domain: SourceTables.domain) }

  func setEntry(accessedDirty: Bool = false, width: UInt64 = SourceTables.width48, root: UInt64? = nil) {
    SourceTables.setNested(
      pasidEntry, table: root ?? guest.root, over: guest.second.root, accessedDirty: accessedDirty, width: width)
    _ = RemappingUnit.invalidatePASIDs()
    forget()
  }

  /// Runs the body while an entry of either stage has another value, and restores the entry.
  func with(_ place: UInt64, _ value: UInt64, _ body: () -> Void) {
    let kept = load64(place)
    store64(place, value)
    forget()
    body()
    store64(place, kept)
    forget()
  }
}

private func map(_ setup: Setup) {
  let guest = setup.guest
  guest.map(page, to: setup.data)
  guest.map(readOnlyPage, to: setup.readOnly, leaf & ~PagingTables.writable)
  guest.map(overReadOnlyPage, to: guest.take(PagingTables.readable))
  guest.map(overWriteOnlyPage, to: guest.take(PagingTables.writable))
  guest.map(overMissingPage, to: guestBase - Pages.size)
  guest.map(freshPage, to: guest.take())
  // Two guest physical pages of 2 MiB, at addresses above the small pages.
  let largeGuest = guestBase + 1 << 30
  guest.second.map(largeGuest, to: setup.large, level: 2, readWrite)
  guest.map(largePage, to: largeGuest, level: 2)
  guest.map(withinLargePage, to: largeGuest + 0x12_3000)
  let split = largeGuest + Pages.largeSize
  for index in 0..<UInt64(4) { guest.second.map(split + index * Pages.size, to: Pages.take(), readWrite) }
  guest.map(splitPage, to: split, level: 2)
}

private func checkTranslation(_ setup: Setup) {
  let guest = setup.guest
  store64(guest.physical(setup.data) + 0x108, marker)
  Report.check("a request is translated by both stages", setup.reads(marker, at: page + 0x108))
  store64(setup.large + 0x12_3450, other)
  Report.check("a 4 KiB page over a 2 MiB page translates", setup.reads(other, at: withinLargePage + 0x450))
  // 4 KiB pages that are adjacent in the first stage's 2 MiB page, and that the second stage maps to separate memory.
  let split = load64(guest.entry(splitPage, level: 2)) & PagingTables.addressBits
  store64(guest.physical(split + 2 * Pages.size) + 0x10, marker)
  store64(guest.physical(split + Pages.size) + 0x10, other)
  Report.check("a 2 MiB page over 4 KiB pages translates", setup.reads(marker, at: splitPage + 2 * Pages.size + 0x10))
  Report.check(
    "the next 4 KiB of the 2 MiB page are in another page", setup.reads(other, at: splitPage + Pages.size + 0x10))
  store64(guest.physical(split) + 0xff8, marker)
  store64(guest.physical(split + Pages.size), other)
  Report.check(
    "one request crosses the border of two 4 KiB pages",
    setup.edu.copy(from: splitPage + 0xff8, to: largePage + 0x1ff8, count: 16)
      && load64(setup.large + 0x1ff8) == marker && load64(setup.large + 0x2000) == other)
  RemappingUnit.checkNoFault("none of these requests causes a fault")
}

private func checkAccessedDirty(_ setup: Setup) {
  put("accessed and dirty bits\n")
  let guest = setup.guest
  setup.setEntry(accessedDirty: true)
  func second(_ address: UInt64) -> UInt64 {
    load64(guest.secondEntry(address)) & (PagingTables.secondAccessed | PagingTables.secondDirty)
  }
  let both = PagingTables.secondAccessed | PagingTables.secondDirty
  let fresh = load64(guest.entry(freshPage)) & PagingTables.addressBits
  let leafTable = guest.table(freshPage, level: 1)
  store64(guest.secondEntry(leafTable), load64(guest.secondEntry(leafTable)) & ~both)

  _ = setup.edu.read(from: freshPage)
  Report.check("a read sets A in the first stage", load64(guest.entry(freshPage)) & 0x60 == PagingTables.accessed)
  Report.check(
    "a read sets A and not D of the page that it reads in the second stage",
    second(fresh) == PagingTables.secondAccessed)
  Report.check("a first-stage table in which the walk sets A is dirty in the second stage", second(leafTable) == both)
  Report.check(
    "the entries of the upper second-stage tables have A set",
    load64(guest.second.entry(fresh, level: 2)) & PagingTables.secondAccessed != 0
      && load64(guest.second.entry(fresh, level: 4)) & PagingTables.secondAccessed != 0)

  // A is set already, so the walk only reads the table.
  store64(guest.secondEntry(leafTable), load64(guest.secondEntry(leafTable)) & ~both)
  setup.forget()
  _ = setup.edu.read(from: freshPage)
  Report.check(
    "a first-stage table that the walk only reads is not dirty in the second stage",
    second(leafTable) == PagingTables.secondAccessed)
  _ = setup.edu.write(to: freshPage)
  Report.check(
    "a write sets D in both stages",
    load64(guest.entry(freshPage)) & PagingTables.dirty != 0 && second(fresh) == both && second(leafTable) == both)

  // Without SSADE a walk does not change A and D of the second stage.
  setup.setEntry()
  store64(guest.secondEntry(fresh), load64(guest.secondEntry(fresh)) & ~both)
  store64(guest.entry(freshPage), load64(guest.entry(freshPage)) & ~0x60)
  setup.forget()
  _ = setup.edu.write(to: freshPage)
  Report.check("without SSADE the second stage's bits do not change", second(fresh) == 0)
  Report.check("without SSADE the first stage's bits are set", load64(guest.entry(freshPage)) & 0x60 == 0x60)
  RemappingUnit.checkNoFault("none of these requests causes a fault")
}

private func checkFirstStageFaults(_ setup: Setup) {
  put("faults of the first stage\n")
  let guest = setup.guest
  setup.edu.checkRead("a first-stage page that is not present is a fault", from: missingPage, Reason.entryNotPresent)
  setup.edu.checkWrite("a write to a read-only first-stage page is a fault", to: readOnlyPage, Reason.writePermission)
  setup.with(guest.entry(page, level: 2), 1 << 20 | PagingTables.large | leaf) {
    setup.edu.checkRead("an entry with reserved bits is a fault", from: page, Reason.entryReserved)
  }
  let table = guest.table(page, level: 1)
  let place = guest.secondEntry(table)
  // The second stage allows the access, but the machine has no memory there, so the read fails.
  setup.with(place, 1 << 40 | readWrite) {
    setup.edu.checkRead("a first-stage table without memory is a fault", from: page, Reason.entryAccess)
  }
  setup.with(guest.secondEntry(guest.root), 1 << 40 | readWrite) {
    setup.edu.checkRead("a first-stage root without memory is a fault", from: page, Reason.rootAccess)
  }
  setup.with(place, load64(place) & ~PagingTables.readable) {
    setup.edu.checkRead("a first-stage table that must not be read is a fault", from: page, Reason.entryReadPermission)
  }
  let root = guest.secondEntry(guest.root)
  setup.with(root, load64(root) & ~PagingTables.readable) {
    setup.edu.checkRead("a first-stage root that must not be read is a fault", from: page, Reason.rootReadPermission)
  }
  // The walk must set A, and the second stage does not allow a write of the table.
  let entry = guest.entry(page)
  setup.with(place, load64(place) & ~PagingTables.writable) {
    store64(entry, load64(entry) & ~0x60)
    setup.edu.checkRead(
      "setting A in a table that must not be written is a fault", from: page, Reason.entryWritePermission)
    Report.check("the walk does not write the table that must not be written", load64(entry) & 0x60 == 0)
    store64(entry, load64(entry) | PagingTables.accessed)
    _ = setup.edu.read(from: page)
    RemappingUnit.checkNoFault("a table that must not be written causes no fault if A is set already")
  }
}

private func checkSecondStageFaults(_ setup: Setup) {
  put("faults of the second stage\n")
  let guest = setup.guest
  setup.edu.checkRead("a guest page that is not present is a fault", from: overMissingPage, Reason.secondNotPresent)
  setup.edu.checkWrite("a write to a read-only guest page is a fault", to: overReadOnlyPage, Reason.writePermission)
  Report.check("a read of a read-only guest page succeeds", setup.reads(0, at: overReadOnlyPage))
  setup.edu.checkRead("a read of a write-only guest page is a fault", from: overWriteOnlyPage, Reason.readPermission)
  let place = guest.secondEntry(setup.data)
  setup.with(place, load64(place) | 1 << 51) {
    setup.edu.checkRead("an entry with reserved bits is a fault", from: page, Reason.secondReserved)
  }
  setup.with(place, 0xfee0_0000 | readWrite) {
    setup.edu.checkWrite("a guest page in the interrupt range is a fault", to: page, Reason.interruptAddress)
  }
  // A guest address far from the first-stage tables, so that only the data page uses these second-stage tables.
  let far = guestBase + 8 << 30
  guest.second.map(far, to: Pages.take(), readWrite)
  setup.with(guest.entry(page), far | leaf) {
    store64(setup.large, 0)
    _ = setup.edu.read(from: page)
    RemappingUnit.checkNoFault("a page elsewhere in the guest's memory translates")
    setup.with(guest.second.entry(far, level: 3), 1 << 40 | readWrite) {
      setup.edu.checkRead("a second-stage table without memory is a fault", from: page, Reason.secondEntryAccess)
    }
  }
  let present = load64(setup.pasidEntry)
  store64(setup.pasidEntry, present & 0xfff | 1 << 40)
  _ = RemappingUnit.invalidatePASIDs()
  setup.forget()
  setup.edu.checkRead("a second-stage root without memory is a fault", from: page, Reason.secondRootAccess)
  store64(setup.pasidEntry, present)
  _ = RemappingUnit.invalidatePASIDs()
  Report.check("the restored tables translate", setup.reads(load64(guest.physical(setup.data)), at: page))
}

/// Checks a second stage of three levels: guest physical addresses have 39 bits.
private func checkWidth(_ setup: Setup) {
  put("a second stage of 39 bits\n")
  let guest = setup.guest
  // The first entry of the 4-level root points to a table that is also the root of a 3-level second stage.
  let narrow = load64(guest.second.entry(guestBase, level: 4)) & PagingTables.addressBits
  SourceTables.setNested(setup.pasidEntry, table: guest.root, over: narrow, width: 1)
  _ = RemappingUnit.invalidatePASIDs()
  setup.forget()
  Report.check("a second stage of 39 bits translates", setup.reads(load64(guest.physical(setup.data)), at: page))
  setup.with(guest.entry(page), 1 << 40 | leaf) {
    setup.edu.checkRead("a page beyond 39 bits is a fault", from: page, Reason.outputBeyondWidth)
  }
  setup.with(guest.entry(page, level: 2), 1 << 40 | leaf) {
    setup.edu.checkRead("a table beyond 39 bits is a fault", from: page, Reason.entryBeyondWidth)
  }
  setup.setEntry()
}

private func checkStaleness(_ setup: Setup) {
  put("caches\n")
  let guest = setup.guest
  let domain = SourceTables.domain
  let pasid = SourceTables.pasid
  let moved = Pages.take()
  store64(moved, other)
  store64(guest.physical(setup.data), marker)
  let place = guest.secondEntry(setup.data)
  let kept = load64(place)

  Report.check("a request caches its page", setup.reads(marker, at: page))
  store64(place, moved | readWrite)
  Report.check("a changed second-stage entry has no effect before an invalidation", setup.reads(marker, at: page))
  _ = RemappingUnit.invalidatePage(setup.data, domain: domain + 1)
  Report.check("an invalidation of another domain leaves the page cached", setup.reads(marker, at: page))
  _ = RemappingUnit.invalidatePage(setup.data, domain: domain)
  Report.check("after the guest page is invalidated the second-stage entry has effect", setup.reads(other, at: page))
  store64(place, kept)
  _ = RemappingUnit.invalidatePage(page + Pages.size, pasid: pasid, domain: domain)
  Report.check("an invalidation of the next first-stage page leaves the page cached", setup.reads(other, at: page))
  _ = RemappingUnit.invalidatePage(page, pasid: pasid, domain: domain)
  Report.check("a first-stage invalidation of the page removes the page", setup.reads(marker, at: page))

  let entry = guest.entry(page)
  let first = load64(entry)
  store64(entry, setup.readOnly | leaf)
  store64(guest.physical(setup.readOnly), other)
  Report.check("a changed first-stage entry has no effect before an invalidation", setup.reads(marker, at: page))
  _ = RemappingUnit.invalidateTranslations(pasid: pasid, domain: domain)
  Report.check("after the PASID is invalidated the first-stage entry has effect", setup.reads(other, at: page))
  store64(entry, 0)
  _ = RemappingUnit.invalidateTranslations(domain: domain)
  setup.edu.checkRead(
    "after the domain is invalidated, a read through a cleared entry is a fault", from: page, Reason.entryNotPresent)
  store64(entry, first)
  Report.check("after the entry is present again, requests are translated again", setup.reads(marker, at: page))
}

func kernelMain() {
  guard let edu = Edu.find() else { return Report.fail("there is no edu") }
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.nestedTranslation) else {
    return Report.fail("the unit offers no nested translation")
  }
  let setup = Setup(edu: edu)
  map(setup)
  SourceTables.setNested(setup.pasidEntry, table: setup.guest.root, over: setup.guest.second.root)
  guard RemappingUnit.translate(root: setup.sources.root, isScalable: true) else { return }
  checkTranslation(setup)
  checkAccessedDirty(setup)
  checkFirstStageFaults(setup)
  checkSecondStageFaults(setup)
  checkWidth(setup)
  checkStaleness(setup)
  RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false)
  RemappingUnit.checkNoFault("no fault record remains")
}
