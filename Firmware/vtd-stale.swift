/// Tests which entries stay cached until they are invalidated, and which entries each invalidation removes. There are
/// two functions in two domains, with three pages each. The test changes all entries of one kind; the change must have
/// no effect yet. Then it submits one invalidation. Now the changed entries that the invalidation covers must have
/// effect, and no others. VT-d 4.1, 6.2 for the caches, 6.5.1 for invalidation by register and 6.5.2 for the queue's
/// descriptors.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-stale" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on \
///       -device edu,dma_mask=0xffffffffffffffff -device edu,dma_mask=0xffffffffffffffff

private let smallPage: UInt64 = 0x12_3456_6000
private let nextPage: UInt64 = smallPage + Pages.size
/// 2 MiB.
private let largePage: UInt64 = 0x12_4000_0000
/// The address to which a function copies the data that it reads.
private let sink: UInt64 = 0x12_3460_0000
private let domainA: UInt64 = 0x2a
private let domainB: UInt64 = 0x07
private var pasid: UInt64 { SourceTables.pasid }

/// The pages that an invalidation must remove: a bit for each page of each function.
private struct Covered: Equatable {
  let rawValue: UInt64

  static let pages: UInt64 = 3
  static let smallA = Covered(rawValue: 1 << 0)
  static let nextA = Covered(rawValue: 1 << 1)
  static let largeA = Covered(rawValue: 1 << 2)
  static let smallB = Covered(rawValue: 1 << 3)
  static let a = Covered(rawValue: 7)
  static let b = Covered(rawValue: 7 << 3)
  static let all = Covered(rawValue: 63)
  static let none = Covered(rawValue: 0)
  static let smallAndNextA = Covered(rawValue: 3)
}

/// A function, and two sets of tables that map its pages to different memory.
private struct Subject {
  let edu: Edu
  let domain: UInt64
  let stage: PagingTables.Stage
  let tables: PagingTables
  let others: PagingTables
  private let sinkMemory = Pages.take()

  init(_ edu: Edu, domain: UInt64, stage: PagingTables.Stage) {
    self.edu = edu
    self.domain = domain
    self.stage = stage
    tables = PagingTables(stage)
    others = PagingTables(stage)
    map(tables, generation: 0)
    map(others, generation: 1)
  }

  private static func address(_ page: UInt64) -> UInt64 { page == 0 ? smallPage : page == 1 ? nextPage : largePage }
  private static func level(_ page: UInt64) -> UInt64 { page == 2 ? 2 : 1 }

  private func map(_ tables: PagingTables, generation: UInt64) {
    tables.map(sink, to: sinkMemory, stage.rawValue)
    for page in 0..<Covered.pages {
      let memory = Pages.reserve(page == 2 ? Pages.largeSize : Pages.size)
      store64(memory, domain << 32 | page << 8 | generation)
      tables.map(Self.address(page), to: memory, level: Self.level(page), stage.rawValue)
    }
  }

  /// Returns which of the two memories the function reads at a page now: 0 for that of `tables`, 1 for that of `others`
  /// before any exchange; nil if the read fails or returns neither.
  func generation(_ page: UInt64) -> UInt64? {
    store64(sinkMemory, .max)
    guard edu.copy(from: Self.address(page), to: sink) else { return nil }
    let found = load64(sinkMemory)
    return found & ~1 == domain << 32 | page << 8 ? found & 1 : nil
  }

  /// Exchanges the page entries of the two sets of tables.
  func exchangePages() {
    for page in 0..<Covered.pages {
      exchangeWords(
        tables.entry(Self.address(page), level: Self.level(page)),
        others.entry(Self.address(page), level: Self.level(page)))
    }
  }
}

/// Whether the context or PASID-table entries point to `others` now.
nonisolated(unsafe) private var usesOthers = false

private func exchangeWords(_ one: UInt64, _ other: UInt64) {
  let kept = load64(one)
  store64(one, load64(other))
  store64(other, kept)
}

private struct Setup {
  let a: Subject
  let b: Subject
  let isScalable: Bool

  init(_ edu: Edu, _ other: Edu, stage: PagingTables.Stage, isScalable: Bool) {
    a = Subject(edu, domain: domainA, stage: stage)
    b = Subject(other, domain: domainB, stage: stage)
    self.isScalable = isScalable
  }

  func forgetAll() { RemappingUnit.invalidateEverything(isScalable: isScalable) }

  /// Returns the pages at which the functions now read this generation's memory; nil if a read fails or returns the
  /// memory of neither generation.
  func pages(of generation: UInt64) -> Covered? {
    var found: UInt64 = 0
    for page in 0..<Covered.pages * 2 {
      let subject = page < Covered.pages ? a : b
      guard let seen = subject.generation(page % Covered.pages) else { return nil }
      if seen == generation { found |= 1 << page }
    }
    return Covered(rawValue: found)
  }

  /// Checks that one invalidation makes exactly the expected pages change.
  /// - Parameters:
  ///   - exchange: changes entries of both functions, so that each page leads to the memory of the other generation.
  ///   - before: invalidates other caches that would hide the change.
  ///   - after: invalidates those other caches again, after the invalidation under test.
  ///   - invalidate: the invalidation under test; returns whether it completed.
  func expect(
    _ name: StaticString, _ expected: Covered, exchange: () -> Void, before: () -> Void = {},
    after: () -> Void = {}, by invalidate: () -> Bool
  ) {
    let generation = a.generation(0) ?? 2
    let cached = pages(of: generation)
    exchange()
    before()
    let stale = pages(of: generation)
    let isDone = invalidate()
    after()
    let fresh = pages(of: generation ^ 1)
    if cached == .all, stale == .all, isDone, fresh == expected {
      Report.pass(name)
    } else {
      put("FAIL ")
      put(name)
      put(isDone ? ": cached 0x" : ": not done; cached 0x")
      put(Hexadecimal(cached?.rawValue ?? .max))
      put(", stale 0x")
      put(Hexadecimal(stale?.rawValue ?? .max))
      put(", new 0x")
      put(Hexadecimal(fresh?.rawValue ?? .max))
      put(", expected 0x")
      put(Hexadecimal(expected.rawValue))
      endLine()
      Report.countFailure()
    }
    forgetAll()
    if pages(of: generation ^ 1) != .all { Report.fail("an invalidation of everything leaves cached pages") }
  }

  func expectPages(_ name: StaticString, _ expected: Covered, by invalidate: () -> Bool) {
    expect(
      name, expected,
      exchange: {
        a.exchangePages()
        b.exchangePages()
      }, by: invalidate)
  }
}

// MARK: Pages

/// Checks invalidations of pages through the queue: VT-d 6.5.2.3.
private func checkPages(_ setup: Setup) {
  setup.expectPages("the global invalidation removes all pages", .all) { RemappingUnit.invalidateTranslations() }
  setup.expectPages("an invalidation of a domain removes only the entries of that domain", .a) {
    RemappingUnit.invalidateTranslations(domain: domainA)
  }
  setup.expectPages("an invalidation of the other domain removes the entries of that domain", .b) {
    RemappingUnit.invalidateTranslations(domain: domainB)
  }
  setup.expectPages("an invalidation of a third domain removes nothing", .none) {
    RemappingUnit.invalidateTranslations(domain: 9)
  }
  setup.expectPages("a context invalidation removes no page", .none) { RemappingUnit.invalidateContexts() }
  if setup.isScalable {
    setup.expectPages("a PASID-cache invalidation removes no page", .none) { RemappingUnit.invalidatePASIDs() }
  }
  if RemappingUnit.offers(RemappingUnit.interruptRemapping) {
    setup.expectPages("an interrupt entry invalidation removes no page", .none) {
      RemappingUnit.invalidateInterruptEntries()
    }
  }
}

/// Checks invalidations of second-stage pages: VT-d 6.5.2.3.
private func checkPageSelective(_ setup: Setup) {
  func invalidate(_ address: UInt64, _ mask: UInt64, _ domain: UInt64) -> Bool {
    RemappingUnit.invalidatePage(address | mask, domain: domain)
  }
  setup.expectPages("an invalidation of one page removes that page", .smallA) { invalidate(smallPage, 0, domainA) }
  setup.expectPages("an invalidation of the next page removes the next page", .nextA) {
    invalidate(nextPage, 0, domainA)
  }
  setup.expectPages("an invalidation of one page in the other domain removes that page", .smallB) {
    invalidate(smallPage, 0, domainB)
  }
  setup.expectPages("an invalidation of two pages removes two", .smallAndNextA) { invalidate(smallPage, 1, domainA) }
  setup.expectPages("an invalidation of any page in 2 MiB removes the large page", .largeA) {
    invalidate(largePage + 0x7_f000, 0, domainA)
  }
  setup.expectPages("an invalidation of the page after the large page removes nothing", .none) {
    invalidate(largePage + Pages.largeSize, 0, domainA)
  }
  setup.expectPages("two invalidations of 1 GiB each remove all pages in them", .a) {
    invalidate(0x12_0000_0000, 18, domainA) && invalidate(0x12_4000_0000, 18, domainA)
  }
  setup.expectPages("an invalidation of a third domain removes nothing", .none) { invalidate(smallPage, 0, 9) }
  setup.expectPages("address bits beyond MGAW are ignored", .smallA) { invalidate(smallPage | 1 << 60, 0, domainA) }
}

/// Checks invalidations of first-stage pages: VT-d 6.5.2.4.
private func checkPASIDSelective(_ setup: Setup) {
  func invalidate(_ address: UInt64, _ mask: UInt64, _ domain: UInt64, _ number: UInt64) -> Bool {
    RemappingUnit.invalidatePage(address | mask, pasid: number, domain: domain)
  }
  setup.expectPages("an invalidation of a PASID removes all of its pages", .a) {
    RemappingUnit.invalidateTranslations(pasid: pasid, domain: domainA)
  }
  setup.expectPages("an invalidation of another PASID removes nothing", .none) {
    RemappingUnit.invalidateTranslations(pasid: pasid + 1, domain: domainA)
  }
  setup.expectPages("an invalidation of the PASID in a third domain removes nothing", .none) {
    RemappingUnit.invalidateTranslations(pasid: pasid, domain: 9)
  }
  setup.expectPages("an invalidation of one page removes that page", .smallA) {
    invalidate(smallPage, 0, domainA, pasid)
  }
  setup.expectPages("an invalidation of one page in the other domain removes that page", .smallB) {
    invalidate(smallPage, 0, domainB, pasid)
  }
  setup.expectPages("an invalidation of two pages removes two", .smallAndNextA) {
    invalidate(smallPage, 1, domainA, pasid)
  }
  setup.expectPages("an invalidation of any page in 2 MiB removes the large page", .largeA) {
    invalidate(largePage + 0x7_f000, 0, domainA, pasid)
  }
  setup.expectPages("an invalidation of the page for another PASID removes nothing", .none) {
    invalidate(smallPage, 0, domainA, pasid + 1)
  }
  setup.expectPages("address bits beyond MGAW are ignored", .smallA) {
    invalidate(smallPage | 1 << 60, 0, domainA, pasid)
  }
  // The unit does not know which first-stage pages use a second-stage address, so it removes all pages of the domain.
  setup.expectPages("an invalidation of a second-stage page removes all pages of the domain", .a) {
    RemappingUnit.invalidatePage(smallPage, domain: domainA)
  }
}

/// Checks that register-based invalidation does nothing in scalable mode: VT-d 6.5.1.
private func checkIgnoredRegisters(_ setup: Setup) {
  setup.expectPages("a register-based invalidation does nothing, and the registers report it", .none) {
    RemappingUnit.write64(RemappingUnit.invalidateCommand, 1 << 63 | 1 << 60)
    RemappingUnit.write64(RemappingUnit.Register.contextCommand, 1 << 63 | 1 << 61)
    return RemappingUnit.read64(RemappingUnit.invalidateCommand) >> 57 == 1 << 3
      && RemappingUnit.read64(RemappingUnit.Register.contextCommand) >> 59 == 1 << 2
  }
}

// MARK: By register

/// Checks register-based invalidation, which works only while the queue is off: VT-d 6.5.1.
private func checkRegisters(_ setup: Setup, contexts: () -> Void) {
  put("by register\n")
  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  func pages(_ granularity: UInt64, domain: UInt64 = 0, address: UInt64 = 0) -> Bool {
    RemappingUnit.write64(RemappingUnit.invalidateAddress, address)
    RemappingUnit.write64(RemappingUnit.invalidateCommand, 1 << 63 | granularity << 60 | domain << 32)
    guard
      wait(ticks: RemappingUnit.patience, until: { RemappingUnit.read64(RemappingUnit.invalidateCommand) >> 63 == 0 })
    else { return false }
    return RemappingUnit.read64(RemappingUnit.invalidateCommand) >> 57 & 3 == granularity
  }
  func forget() {
    RemappingUnit.write64(RemappingUnit.Register.contextCommand, 1 << 63 | 1 << 61)
    if !pages(1) { Report.fail("the global invalidation does not complete") }
  }
  func expect(_ name: StaticString, _ expected: Covered, by invalidate: () -> Bool) {
    let generation = setup.a.generation(0) ?? 2
    let cached = setup.pages(of: generation)
    setup.a.exchangePages()
    setup.b.exchangePages()
    let stale = setup.pages(of: generation)
    let isDone = invalidate()
    Report.check(name, cached == .all && stale == .all && isDone && setup.pages(of: generation ^ 1) == expected)
    forget()
  }
  expect("the global invalidation removes all pages", .all) { pages(1) }
  expect("an invalidation of a domain removes only the entries of that domain", .a) { pages(2, domain: domainA) }
  expect("an invalidation of one page removes that page", .smallA) { pages(3, domain: domainA, address: smallPage) }
  expect("an invalidation of two pages removes two", .smallAndNextA) {
    pages(3, domain: domainA, address: smallPage | 1)
  }
  expect("an invalidation of a third domain removes nothing", .none) { pages(2, domain: 9) }
  contexts()
  RemappingUnit.startQueue(isWide: setup.isScalable)
}

// MARK: Legacy mode

private func checkLegacy(_ edu: Edu, _ other: Edu) {
  put("legacy mode, queue of 128-bit descriptors\n")
  let setup = Setup(edu, other, stage: .second, isScalable: false)
  let sources = SourceTables(source: edu.source)
  let othersSources = sources.of(source: other.source)
  sources.setLegacy(type: 0, table: setup.a.tables.root, domain: domainA)
  othersSources.setLegacy(type: 0, table: setup.b.tables.root, domain: domainB)
  guard RemappingUnit.translate(root: sources.root, isScalable: false) else { return }
  checkPages(setup)
  checkPageSelective(setup)

  put("context entries\n")
  usesOthers = false
  func exchange() {
    usesOthers.toggle()
    sources.setLegacy(type: 0, table: usesOthers ? setup.a.others.root : setup.a.tables.root, domain: domainA)
    othersSources.setLegacy(type: 0, table: usesOthers ? setup.b.others.root : setup.b.tables.root, domain: domainB)
  }
  func forgetPages() { _ = RemappingUnit.invalidateTranslations() }
  func expect(_ name: StaticString, _ expected: Covered, _ low: UInt64) {
    setup.expect(name, expected, exchange: exchange, before: forgetPages, after: forgetPages) {
      RemappingUnit.submit(0x1 | low)
    }
  }
  expect("the global invalidation removes both entries", .all, 1 << 4)
  expect("an invalidation of a domain removes only the entries of that domain", .a, 2 << 4 | domainA << 16)
  expect("an invalidation of a third domain removes no entry", .none, 2 << 4 | 9 << 16)
  expect("an invalidation of one function removes its entry", .a, 3 << 4 | domainA << 16 | edu.source << 32)
  expect("an invalidation of the other function removes its entry", .b, 3 << 4 | domainB << 16 | other.source << 32)
  expect(
    "an invalidation of another function of the device removes no entry", .none,
    3 << 4 | domainA << 16 | (edu.source | 2) << 32)
  expect(
    "an invalidation whose mask covers the function removes its entry", .a,
    3 << 4 | domainA << 16 | (edu.source | 2) << 32 | 2 << 48)
  setup.expect("a page invalidation removes no context entry", .none, exchange: exchange) {
    RemappingUnit.invalidateTranslations(domain: 9)
  }

  checkRegisters(setup) {
    func expect(_ name: StaticString, _ expected: Covered, _ command: UInt64) {
      func forget() { RemappingUnit.write64(RemappingUnit.invalidateCommand, 1 << 63 | 1 << 60) }
      let generation = setup.a.generation(0) ?? 2
      let cached = setup.pages(of: generation)
      exchange()
      forget()
      let stale = setup.pages(of: generation)
      RemappingUnit.write64(RemappingUnit.Register.contextCommand, 1 << 63 | command)
      let status = RemappingUnit.read64(RemappingUnit.Register.contextCommand)
      forget()
      let isDone = status >> 63 == 0 && status >> 59 & 3 == command >> 61 & 3
      Report.check(name, cached == .all && stale == .all && isDone && setup.pages(of: generation ^ 1) == expected)
      RemappingUnit.write64(RemappingUnit.Register.contextCommand, 1 << 63 | 1 << 61)
      forget()
    }
    expect("the global context invalidation removes both entries", .all, 1 << 61)
    expect("an invalidation of a domain removes only the entries of that domain", .a, 2 << 61 | domainA)
    expect("an invalidation of one function removes its entry", .b, 3 << 61 | domainB | other.source << 16)
  }
  RemappingUnit.checkNoFault("none of these requests causes a fault")
}

// MARK: Scalable mode

private func checkScalable(_ edu: Edu, _ other: Edu, stage: PagingTables.Stage) {
  put(stage == .first ? "scalable mode, first stage\n" : "scalable mode, second stage\n")
  let setup = Setup(edu, other, stage: stage, isScalable: true)
  let sources = SourceTables(source: edu.source)
  let othersSources = sources.of(source: other.source)
  let entries: InlineArray<2, UInt64> = [sources.makeScalable(), othersSources.makeScalable()]
  usesOthers = false
  func set(_ entry: UInt64, _ subject: Subject, other: Bool) {
    let table = other ? subject.others.root : subject.tables.root
    if stage == .first {
      SourceTables.setFirstStage(entry, table: table, domain: subject.domain)
    } else {
      SourceTables.setSecondStage(entry, table: table, domain: subject.domain)
    }
  }
  set(entries[0], setup.a, other: false)
  set(entries[1], setup.b, other: false)
  guard RemappingUnit.translate(root: sources.root, isScalable: true) else { return }
  checkPages(setup)
  if stage == .first { checkPASIDSelective(setup) } else { checkPageSelective(setup) }
  checkIgnoredRegisters(setup)

  put("PASID-table entries\n")
  func forgetPages() { _ = RemappingUnit.invalidateTranslations() }
  func exchange() {
    usesOthers.toggle()
    set(entries[0], setup.a, other: usesOthers)
    set(entries[1], setup.b, other: usesOthers)
  }
  func expect(_ name: StaticString, _ expected: Covered, _ low: UInt64) {
    setup.expect(name, expected, exchange: exchange, before: forgetPages, after: forgetPages) {
      RemappingUnit.submit(0x7 | low)
    }
  }
  expect("the global invalidation removes both entries", .all, 3 << 4)
  expect("an invalidation of a domain removes only the entries of that domain", .b, domainB << 16)
  expect("an invalidation of a PASID in one domain removes its entry", .a, 1 << 4 | domainA << 16 | pasid << 32)
  expect("an invalidation of another PASID removes no entry", .none, 1 << 4 | domainA << 16 | (pasid + 1) << 32)
  expect("an invalidation of the PASID in a third domain removes nothing", .none, 1 << 4 | 9 << 16 | pasid << 32)
  setup.expect(
    "a context invalidation removes no PASID-table entry", .none, exchange: exchange, before: forgetPages,
    after: forgetPages
  ) { RemappingUnit.invalidateContexts() }

  put("context entries\n")
  // Another PASID directory for each function. Its entries lead to the tables that are not in use.
  let spare = SourceTables(source: edu.source)
  let othersSpare = spare.of(source: other.source)
  set(spare.makeScalable(), setup.a, other: !usesOthers)
  set(othersSpare.makeScalable(), setup.b, other: !usesOthers)
  func exchangeContexts() {
    exchangeWords(sources.scalableContextEntry, spare.scalableContextEntry)
    exchangeWords(othersSources.scalableContextEntry, othersSpare.scalableContextEntry)
  }
  func forgetBelow() {
    _ = RemappingUnit.invalidatePASIDs()
    _ = RemappingUnit.invalidateTranslations()
  }
  func expectContexts(_ name: StaticString, _ expected: Covered, _ low: UInt64) {
    setup.expect(name, expected, exchange: exchangeContexts, before: forgetBelow, after: forgetBelow) {
      RemappingUnit.submit(0x1 | low)
    }
  }
  expectContexts("the global invalidation removes both entries", .all, 1 << 4)
  expectContexts("an invalidation of one function removes its entry", .a, 3 << 4 | edu.source << 32)
  expectContexts("an invalidation of the other function removes its entry", .b, 3 << 4 | other.source << 32)
  expectContexts(
    "an invalidation of another function of the device removes no entry", .none, 3 << 4 | (edu.source | 1) << 32)
  expectContexts(
    "an invalidation whose mask covers the function removes its entry", .a,
    3 << 4 | (edu.source | 7) << 32 | 3 << 48)
  RemappingUnit.checkNoFault("none of these requests causes a fault")
}

func kernelMain() {
  guard let edu = Edu.find(), let other = Edu.find(after: edu) else {
    return Report.fail("there are fewer than two edu devices")
  }
  guard RemappingUnit.isThere else { return Report.fail("there is no VT-d unit") }
  checkLegacy(edu, other)
  if RemappingUnit.offers(RemappingUnit.scalableMode) {
    if RemappingUnit.offers(RemappingUnit.secondStage) { checkScalable(edu, other, stage: .second) }
    if RemappingUnit.offers(RemappingUnit.firstStage) { checkScalable(edu, other, stage: .first) }
  }
  RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false)
  RemappingUnit.checkNoFault("no fault record remains")
}
