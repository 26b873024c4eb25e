/// Functions with a cache of their own: translation requests and translated requests (VT-d 4.1, chapter 4), device-TLB
/// invalidations that are answered, held, answered wrongly, and not at all (6.5.2.5, 6.5.2.6, 6.5.2.10), and page requests
/// with their responses (7.4 to 7.7).

private typealias Register = RemappingUnit.Register

private let page: UInt64 = 0x12_3456_7000
private let readOnlyPage: UInt64 = 0x12_3456_8000
private let missingPage: UInt64 = 0x12_3456_a000
private let sink: UInt64 = 0x12_3460_0000
/// 2 MiB.
private let largePage: UInt64 = 0x12_4000_0000
private let marker: UInt64 = 0x0123_4567_89ab_cdef
private let other: UInt64 = 0xfedc_ba98_7654_3210
private let number: UInt64 = 5
private let queueError: UInt32 = 1 << 4
private let completionError: UInt32 = 1 << 5
private let timeout: UInt32 = 1 << 6
private let event: UInt32 = 0x53

private enum Reason {
  static let typeBlocks: UInt64 = 0x0d
  static let notEnabled: UInt64 = 0x44
  static let pageRequestNotEnabled: UInt64 = 0x47
}

private func status() -> UInt32 { RemappingUnit.read32(Register.faultStatus) }

private struct Setup {
  let engine: Engine
  let isScalable: Bool
  let tables: PagingTables
  let leaf: UInt64
  /// 0: requests without PASID.
  let pasid: UInt64
  let memory = Pages.take()
  let readOnly = Pages.take()
  let result = Pages.take()
  let large = Pages.reserve(Pages.largeSize)

  init(engine: Engine, stage: PagingTables.Stage, isScalable: Bool, pasid: UInt64) {
    self.engine = engine
    self.isScalable = isScalable
    self.pasid = pasid
    tables = PagingTables(stage)
    leaf = stage.rawValue
    store64(memory, marker)
    tables.map(page, to: memory, leaf)
    tables.map(sink, to: result, leaf)
    tables.map(readOnlyPage, to: readOnly, leaf & ~PagingTables.writable)
    tables.map(largePage, to: large, level: 2, leaf)
  }

  private var flags: UInt32 { pasid == 0 ? 0 : Engine.withPASID }

  func run(_ command: UInt32, from source: UInt64 = 0, to destination: UInt64 = 0) -> UInt32 {
    engine.run(command | flags, pasid: pasid, from: source, to: destination)
  }

  func begin(_ command: UInt32, from source: UInt64 = 0, to destination: UInt64 = 0) {
    engine.begin(command | flags, pasid: pasid, from: source, to: destination)
  }

  /// Whether what the engine reads by its own cache is a value.
  func reads(_ value: UInt64) -> Bool {
    store64(result, ~value)
    return run(Engine.Operation.copy | Engine.byCache, from: page, to: sink) == Engine.Result.success
      && load64(result) == value
  }

  /// Puts the invalidation of a range of the function's cache into the queue.
  func enqueueInvalidation(of address: UInt64, isSized: Bool = false) {
    if pasid == 0 {
      RemappingUnit.enqueue(0x3 | engine.source << 32, address | (isSized ? 1 : 0))
    } else {
      RemappingUnit.enqueue(0x8 | engine.source << 16 | pasid << 32, address | (isSized ? 1 << 11 : 0))
    }
  }

  func invalidateCache(_ address: UInt64, isSized: Bool = false) -> Bool {
    enqueueInvalidation(of: address, isSized: isSized)
    return RemappingUnit.submitAndWait()
  }

  func invalidatePages() { _ = RemappingUnit.invalidateTranslations() }

  /// Of the machine's own making: the fault has a reason, the source and the page; the rest is in other tests.
  func checkFault(_ name: StaticString, _ reason: UInt64, at address: UInt64) {
    let fault = RemappingUnit.takeFault()
    if let fault, fault.reason == reason, fault.source == engine.source, fault.address == address & ~0xfff {
      return Report.pass(name)
    }
    RemappingUnit.fail(name, recorded: fault, wanted: (reason, address))
  }
}

// MARK: Translations

private func checkTranslations(_ setup: Setup) {
  put("translations\n")
  let engine = setup.engine
  func answer(_ address: UInt64, _ flags: UInt32 = 0) -> (result: UInt32, page: UInt64, rights: UInt32) {
    let result = setup.run(Engine.Operation.translate | flags, from: address)
    return (result, engine.get64(Engine.Register.translated), engine.get(Engine.Register.rights))
  }
  let small = answer(page + 0x123)
  Report.check(
    "a translation is the page's, with its rights and size",
    small.result == Engine.Result.success && small.page == setup.memory && small.rights & 0x3 == 3
      && small.rights >> 8 & 0xff == 12)
  let large = answer(largePage + 0x12_3456)
  Report.check("so for 2 MiB", large.page == setup.large && large.rights & 0x3 == 3 && large.rights >> 8 & 0xff == 21)
  Report.check("a read-only page is to be read", answer(readOnlyPage).rights & 0x3 == 1)
  let missing = answer(missingPage)
  Report.check("a missing one has no rights", missing.rights & 0x3 == 0)
  RemappingUnit.checkNoFault("which is no fault")
  if setup.tables.stage == .first {
    let entry = setup.tables.entry(page, level: 1)
    Report.check("it was set dirty, as a write may follow", load64(entry) & PagingTables.dirty != 0)
    store64(entry, load64(entry) & ~PagingTables.dirty)
    setup.invalidatePages()
    if RemappingUnit.offers(RemappingUnit.noWriteFlag) {
      Report.check(
        "not with the no-write flag",
        answer(page, Engine.noWrite).rights & 3 == 1 && load64(entry) & PagingTables.dirty == 0)
    }
  }
  Report.check(
    "a translated request goes where it says",
    engine.run(Engine.Operation.copy | Engine.translated, from: setup.memory, to: setup.readOnly)
      == Engine.Result.success
      && load64(setup.readOnly) == marker)
  RemappingUnit.checkNoFault("and is no fault")
}

/// - Parameter disable: has the tables say that the function may not, or may again.
private func checkRefusals(_ setup: Setup, reason: UInt64, disable: (Bool) -> Void) {
  put("what the tables do not allow\n")
  disable(true)
  RemappingUnit.invalidateEverything(isScalable: setup.isScalable)
  Report.check(
    "a translation request is unsupported",
    setup.run(Engine.Operation.translate, from: page) == Engine.Result.unsupportedRequest)
  setup.checkFault("and that is recorded", reason, at: page)
  Report.check(
    "a translated request is refused",
    setup.engine.run(Engine.Operation.copy | Engine.translated, from: setup.memory, to: setup.result)
      == Engine.Result.refused)
  setup.checkFault("and that is recorded", reason, at: setup.memory)
  disable(false)
  RemappingUnit.invalidateEverything(isScalable: setup.isScalable)
  setup.engine.enableTranslation(false)
  Report.check(
    "without ATS Enable it asks nothing",
    setup.run(Engine.Operation.translate, from: page) == Engine.Result.notEnabled)
  setup.engine.enableTranslation()
}

// MARK: Invalidations

private func checkInvalidations(_ setup: Setup) {
  put("the function's own cache\n")
  let engine = setup.engine
  let moved = Pages.take()
  store64(moved, other)
  let entry = setup.tables.entry(page, level: 1)
  _ = setup.invalidateCache(0x7fff_ffff_ffff_f000, isSized: true)
  Report.check("a copy by it is right", setup.reads(marker) && engine.get(Engine.Register.cached) >= 2)
  store64(entry, moved | setup.leaf)
  setup.invalidatePages()
  Report.check("an invalidation of the unit's cache leaves it be", setup.reads(marker))
  _ = setup.invalidateCache(page + Pages.size)
  Report.check("so does that of another page", setup.reads(marker))
  let before = engine.get(Engine.Register.invalidations)
  Report.check("the page's is answered", setup.invalidateCache(page))
  Report.check(
    "it was one message, for that page",
    engine.get(Engine.Register.invalidations) == before + 1 && engine.get64(Engine.Register.invalidatedFirst) == page
      && engine.get64(Engine.Register.invalidatedLast) == page | 0xfff)
  let told = engine.get(Engine.Register.invalidatedPASID)
  Report.check("with the PASID, or without", setup.pasid == 0 ? told >> 31 == 0 : told == 1 << 31 | UInt32(setup.pasid))
  Report.check("and the new page counts", setup.reads(other))
  // With S, the lowest zero bit from 12 up gives the size: 16 KiB.
  _ = setup.invalidateCache(page & ~0x3fff | 0x1000, isSized: true)
  Report.check(
    "a range is told as such",
    engine.get64(Engine.Register.invalidatedFirst) == page & ~0x3fff
      && engine.get64(Engine.Register.invalidatedLast) == page | 0x3fff)
  store64(entry, setup.memory | setup.leaf)
  setup.invalidatePages()
  _ = setup.invalidateCache(page)
}

private func checkAnswers(_ setup: Setup) {
  put("answers\n")
  let engine = setup.engine
  let place = Pages.take()
  func submit(_ value: UInt64) {
    setup.enqueueInvalidation(of: page)
    RemappingUnit.enqueue(0x5 | 1 << 5 | value << 32, place)
    RemappingUnit.ring()
  }
  func soon(_ condition: () -> Bool) -> Bool { wait(ticks: 4 * RemappingUnit.patience, until: condition) }

  engine.set(Engine.Register.control, Engine.Answer.later)
  submit(1)
  Report.check("one that comes later is waited for", soon { load32(place) == 1 } && status() == 0)

  engine.set(Engine.Register.control, Engine.Answer.never)
  submit(2)
  Report.check(
    "while one is held the wait does not complete", engine.get(Engine.Register.held) == 1 && load32(place) == 1)
  engine.set(Engine.Register.control, Engine.Answer.heldNow)
  Report.check("answered, it does", soon { load32(place) == 2 } && status() == 0)

  engine.set(Engine.Register.control, Engine.Answer.never)
  submit(3)
  Report.check("one that never comes times out", soon { status() & timeout != 0 })
  Report.check("for that function", RemappingUnit.read64(Register.queueErrorRecord) >> 32 & 0xffff == engine.source)
  Report.check("and the wait is not completed", load32(place) == 2)
  submit(4)
  Report.check("nothing is fetched before that is served", !wait(ticks: 20_000_000) { load32(place) != 2 })
  // What was held is forgotten by its function.
  engine.set(Engine.Register.control, Engine.Answer.atOnce)
  RemappingUnit.write32(Register.faultStatus, timeout)
  Report.check("served, the queue goes on", soon { load32(place) == 4 })
  // What it still held is of no invalidation any more.
  engine.set(Engine.Register.control, Engine.Answer.heldNow)
  Report.check("an answer that nobody waits for is an error", soon { status() & completionError != 0 })
  Report.check("of that function", RemappingUnit.read64(Register.queueErrorRecord) >> 48 == engine.source)
  RemappingUnit.write32(Register.faultStatus, completionError)
  Report.check("which is cleared by a one", status() == 0)

  engine.set(Engine.Register.control, Engine.Answer.wrongly)
  submit(5)
  Report.check("so is an answer with a wrong tag", soon { status() & completionError != 0 })
  Report.check("and the right one is missing", soon { status() & timeout != 0 } && load32(place) == 4)
  engine.set(Engine.Register.control, Engine.Answer.atOnce | Engine.Answer.heldNow)
  RemappingUnit.write32(Register.faultStatus, timeout | completionError)
  submit(6)
  Report.check("after it the queue serves", soon { load32(place) == 6 })
  RemappingUnit.write32(Register.faultStatus, timeout | completionError)

  // More than there are tags, and no answer yet to any.
  engine.set(Engine.Register.control, Engine.Answer.later)
  for _ in 0..<60 { setup.enqueueInvalidation(of: page) }
  Report.check("more invalidations than tags are all answered", RemappingUnit.submitAndWait() && status() == 0)
  engine.set(Engine.Register.control, Engine.Answer.atOnce)
}

// MARK: Page requests

private func checkPageRequests(_ setup: Setup, context: UInt64) {
  put("page requests\n")
  let engine = setup.engine
  func soon(_ condition: () -> Bool) -> Bool { wait(ticks: RemappingUnit.patience, until: condition) }
  func respond(_ code: PageRequests.Code, _ group: UInt64) -> Bool {
    PageRequests.respond(code, group: group, of: engine.source, pasid: setup.pasid == 0 ? nil : setup.pasid)
  }
  func request(_ group: UInt64, writes: Bool = true) -> UInt32 {
    Engine.Operation.request | Engine.read | (writes ? Engine.write : 0) | Engine.lastInGroup | UInt32(group) << 16
  }
  PageRequests.startQueue()

  Report.check(
    "where the context entry does not allow them they are invalid",
    setup.run(request(1), from: missingPage) == Engine.Result.invalidRequest && PageRequests.count == 0)
  setup.checkFault("and that is recorded", Reason.pageRequestNotEnabled, at: missingPage)
  store64(context, load64(context) | 1 << 4)
  RemappingUnit.invalidateEverything(isScalable: true)

  // The event, once for what is not served.
  RemappingUnit.setEvent(PageRequests.eventControl, vector: event, to: LocalAPIC.identifier)
  RemappingUnit.write32(PageRequests.eventControl, 0)
  enableInterrupts()
  let before = Interrupts.count(event)
  setup.begin(request(0x1a5), from: missingPage + 0x123)
  Report.check("one brings the event", soon { Interrupts.count(event) == before + 1 })
  Report.check("and waits", engine.get(Engine.Register.status) & 1 != 0)
  disableInterrupts()
  RemappingUnit.write32(PageRequests.eventControl, RemappingUnit.eventMask)
  let found = PageRequests.take()
  let prefix: UInt64 = setup.pasid == 0 ? 0 : 1 << 8 | setup.pasid << 32
  Report.check("it says who", found?.low == 1 | prefix | engine.source << 16)
  Report.check("and what: read, write, last, group and page", found?.high == missingPage | 0x1a5 << 3 | 7)
  Report.check(
    "a response reaches the function",
    respond(.success, 0x1a5) && engine.end() == Engine.Result.success)

  setup.begin(request(2, writes: false), from: missingPage)
  Report.check("a read alone is told", PageRequests.take()?.high == missingPage | 2 << 3 | 5)
  Report.check(
    "an invalid request's response",
    respond(.invalid, 2) && engine.end() == Engine.Result.invalidRequest)
  setup.begin(request(3), from: missingPage)
  _ = PageRequests.take()
  Report.check(
    "another group's response is not the one",
    respond(.success, 4) && engine.get(Engine.Register.status) & 1 != 0)
  Report.check("a failure's", respond(.failure, 3) && engine.end() == Engine.Result.responseFailure)

  // The whole way: an access finds no page, requests it, and goes on.
  let fresh = Pages.take()
  store64(setup.memory, marker)
  setup.begin(Engine.Operation.copy | Engine.byCache | Engine.requestPages | 9 << 16, from: page, to: missingPage + 8)
  Report.check("an access requests its page", (PageRequests.take()?.high ?? 0) & ~0xfff == missingPage)
  setup.tables.map(missingPage, to: fresh, setup.leaf)
  Report.check(
    "mapped and answered, it goes on",
    respond(.success, 9) && engine.end() == Engine.Result.success && load64(fresh + 8) == marker)
  store64(setup.tables.entry(missingPage, level: 1), 0)
  _ = RemappingUnit.invalidateTranslations()
  _ = setup.invalidateCache(missingPage)

  // As many as fit, one less than its entries; then it overflows, and what cannot be queued is answered with success.
  Report.check("none is left in the queue", PageRequests.count == 0)
  for _ in 0..<PageRequests.room { _ = setup.run(Engine.Operation.request | Engine.read, from: missingPage) }
  Report.check("a full queue", PageRequests.count == PageRequests.room && !PageRequests.hasOverflowed)
  Report.check("overflows, and answers by itself", setup.run(request(7), from: missingPage) == Engine.Result.success)
  Report.check("as PRO says", PageRequests.hasOverflowed)
  PageRequests.drop()
  setup.begin(request(8), from: missingPage)
  Report.check(
    "served, it queues again",
    PageRequests.take() != nil && respond(.success, 8) && engine.end() == Engine.Result.success)
  RemappingUnit.checkNoFault("nothing of it is a fault")
}

// MARK: Modes

private func checkLegacy(_ engine: Engine) {
  put("legacy mode\n")
  let setup = Setup(engine: engine, stage: .second, isScalable: false, pasid: 0)
  let sources = SourceTables(source: engine.source)
  sources.setLegacy(type: 1, table: setup.tables.root)
  guard RemappingUnit.translate(root: sources.root, isScalable: false) else { return }
  checkTranslations(setup)
  checkRefusals(setup, reason: Reason.typeBlocks) { isOff in
    sources.setLegacy(type: isOff ? 0 : 1, table: setup.tables.root)
  }
  checkInvalidations(setup)
  checkAnswers(setup)
}

private func checkScalable(_ engine: Engine, pasid: UInt64) {
  put(pasid == 0 ? "scalable mode\n" : "scalable mode, with PASID\n")
  let isFirst = RemappingUnit.offers(RemappingUnit.firstStage)
  let setup = Setup(engine: engine, stage: isFirst ? .first : .second, isScalable: true, pasid: pasid)
  let sources = SourceTables(source: engine.source)
  let own = sources.makeScalable()
  let entry = pasid == 0 ? own : own - SourceTables.pasid * 64 + pasid * 64
  if isFirst {
    SourceTables.setFirstStage(entry, table: setup.tables.root)
  } else {
    SourceTables.setSecondStage(entry, table: setup.tables.root)
  }
  let context = sources.scalableContextEntry
  let deviceTLBEnable: UInt64 = 1 << 2
  store64(context, load64(context) | deviceTLBEnable | (pasid == 0 ? 0 : 1 << 3))
  guard RemappingUnit.translate(root: sources.root, isScalable: true) else { return }
  checkTranslations(setup)
  checkRefusals(setup, reason: Reason.notEnabled) { isOff in
    store64(context, load64(context) & ~deviceTLBEnable | (isOff ? 0 : deviceTLBEnable))
  }
  checkInvalidations(setup)
  if RemappingUnit.offers(RemappingUnit.pageRequests) { checkPageRequests(setup, context: context) }
  checkAnswers(setup)
}

func kernelMain() {
  guard let engine = Engine.find() else { return Report.fail("there is no dma-engine") }
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.deviceTLB) else {
    return Report.fail("the unit offers no device TLBs")
  }
  LocalAPIC.start()
  engine.enablePASID()
  engine.enableTranslation()
  engine.enablePageRequests()
  checkLegacy(engine)
  if RemappingUnit.offers(RemappingUnit.scalableMode) {
    checkScalable(engine, pasid: 0)
    if RemappingUnit.offers(RemappingUnit.pasids) { checkScalable(engine, pasid: number) }
  }
  RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false)
  RemappingUnit.checkNoFault("no fault is left")
}
