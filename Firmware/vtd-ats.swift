/// Tests a function with a device-TLB: translation requests and translated requests (VT-d 4.1, chapter 4); device-TLB
/// invalidations that the function answers at once, later, with a wrong tag, or never (6.5.2.5, 6.5.2.6, 6.5.2.10); and
/// page requests with their responses (7.4 to 7.7).
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-ats" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on,x-nested=on,pasid-bits=20,svm=on,device-iotlb=on \
///       -device dma-engine

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
  /// The PASID of the requests; 0: requests without PASID.
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

  /// Returns whether the engine reads a value through its own cache.
  func reads(_ value: UInt64) -> Bool {
    store64(result, ~value)
    return run(Engine.Operation.copy | Engine.byCache, from: page, to: sink) == Engine.Result.success
      && load64(result) == value
  }

  /// Queues the invalidation of a range of the function's cache.
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

  /// Checks a fault's reason, source and page. Other kernels check the rest of a record.
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
    "a translation gives the page with its rights and size",
    small.result == Engine.Result.success && small.page == setup.memory && small.rights & 0x3 == 3
      && small.rights >> 8 & 0xff == 12)
  let large = answer(largePage + 0x12_3456)
  Report.check(
    "a translation gives a 2 MiB page with its rights and size",
    large.page == setup.large && large.rights & 0x3 == 3 && large.rights >> 8 & 0xff == 21)
  Report.check("a translation of a read-only page gives only read", answer(readOnlyPage).rights & 0x3 == 1)
  let missing = answer(missingPage)
  Report.check("a translation of a missing page gives no rights", missing.rights & 0x3 == 0)
  RemappingUnit.checkNoFault("a translation of a missing page causes no fault")
  if setup.tables.stage == .first {
    let entry = setup.tables.entry(page, level: 1)
    Report.check("a translation sets D, because a translated write may follow", load64(entry) & PagingTables.dirty != 0)
    store64(entry, load64(entry) & ~PagingTables.dirty)
    setup.invalidatePages()
    if RemappingUnit.offers(RemappingUnit.noWriteFlag) {
      Report.check(
        "a translation with the no-write flag does not set D",
        answer(page, Engine.noWrite).rights & 3 == 1 && load64(entry) & PagingTables.dirty == 0)
    }
  }
  Report.check(
    "a translated request uses its address",
    engine.run(Engine.Operation.copy | Engine.translated, from: setup.memory, to: setup.readOnly)
      == Engine.Result.success
      && load64(setup.readOnly) == marker)
  RemappingUnit.checkNoFault("a translated request causes no fault")
}

/// - Parameter disable: changes the tables so that they forbid ATS to the function (true), or allow it again (false).
private func checkRefusals(_ setup: Setup, reason: UInt64, disable: (Bool) -> Void) {
  put("refused requests\n")
  disable(true)
  RemappingUnit.invalidateEverything(isScalable: setup.isScalable)
  Report.check(
    "a forbidden translation request gets Unsupported Request",
    setup.run(Engine.Operation.translate, from: page) == Engine.Result.unsupportedRequest)
  setup.checkFault("the refused request is recorded", reason, at: page)
  Report.check(
    "a forbidden translated request is refused",
    setup.engine.run(Engine.Operation.copy | Engine.translated, from: setup.memory, to: setup.result)
      == Engine.Result.refused)
  setup.checkFault("the refused request is recorded", reason, at: setup.memory)
  disable(false)
  RemappingUnit.invalidateEverything(isScalable: setup.isScalable)
  setup.engine.enableTranslation(false)
  Report.check(
    "without ATS Enable the function sends no translation request",
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
  Report.check(
    "a copy through the function's cache reads the right data",
    setup.reads(marker) && engine.get(Engine.Register.cached) >= 2)
  store64(entry, moved | setup.leaf)
  setup.invalidatePages()
  Report.check("an invalidation of the unit's IOTLB leaves the function's cache", setup.reads(marker))
  _ = setup.invalidateCache(page + Pages.size)
  Report.check("a device-TLB invalidation of another page leaves the page cached", setup.reads(marker))
  let before = engine.get(Engine.Register.invalidations)
  Report.check("the function answers the invalidation of the page", setup.invalidateCache(page))
  Report.check(
    "the invalidation is one message, for that page",
    engine.get(Engine.Register.invalidations) == before + 1 && engine.get64(Engine.Register.invalidatedFirst) == page
      && engine.get64(Engine.Register.invalidatedLast) == page | 0xfff)
  let tag = engine.get(Engine.Register.invalidatedPASID)
  Report.check(
    "the message has a PASID if the translation request had one",
    setup.pasid == 0 ? tag >> 31 == 0 : tag == 1 << 31 | UInt32(setup.pasid))
  Report.check("after the invalidation the function uses the new page", setup.reads(other))
  // With S, the lowest zero bit from 12 up gives the size: 16 KiB.
  _ = setup.invalidateCache(page & ~0x3fff | 0x1000, isSized: true)
  Report.check(
    "the invalidation of a range is one message for the whole range",
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
  Report.check("a wait completes after a late answer", soon { load32(place) == 1 } && status() == 0)

  engine.set(Engine.Register.control, Engine.Answer.never)
  submit(2)
  Report.check(
    "a wait does not complete while an answer is missing", engine.get(Engine.Register.held) == 1 && load32(place) == 1)
  engine.set(Engine.Register.control, Engine.Answer.heldNow)
  Report.check("the wait completes after the answer", soon { load32(place) == 2 } && status() == 0)

  engine.set(Engine.Register.control, Engine.Answer.never)
  submit(3)
  Report.check("an invalidation without an answer times out", soon { status() & timeout != 0 })
  Report.check(
    "the time-out names the function", RemappingUnit.read64(Register.queueErrorRecord) >> 32 & 0xffff == engine.source)
  Report.check("a time-out does not complete the wait", load32(place) == 2)
  submit(4)
  Report.check("the unit fetches nothing before ITE is cleared", !wait(ticks: 20_000_000) { load32(place) != 2 })
  // The function answers new invalidations at once. It still holds the one that timed out.
  engine.set(Engine.Register.control, Engine.Answer.atOnce)
  RemappingUnit.write32(Register.faultStatus, timeout)
  Report.check("after ITE is cleared the queue continues", soon { load32(place) == 4 })
  // The function answers the held invalidation, which has timed out.
  engine.set(Engine.Register.control, Engine.Answer.heldNow)
  Report.check("an answer without an invalidation is a completion error", soon { status() & completionError != 0 })
  Report.check(
    "the completion error names the function", RemappingUnit.read64(Register.queueErrorRecord) >> 48 == engine.source)
  RemappingUnit.write32(Register.faultStatus, completionError)
  Report.check("writing a one clears ICE", status() == 0)

  engine.set(Engine.Register.control, Engine.Answer.wrongly)
  submit(5)
  Report.check("an answer with a wrong tag is a completion error", soon { status() & completionError != 0 })
  Report.check("the invalidation with the right tag times out", soon { status() & timeout != 0 } && load32(place) == 4)
  engine.set(Engine.Register.control, Engine.Answer.atOnce | Engine.Answer.heldNow)
  RemappingUnit.write32(Register.faultStatus, timeout | completionError)
  submit(6)
  Report.check("after both errors are cleared the queue continues", soon { load32(place) == 6 })
  RemappingUnit.write32(Register.faultStatus, timeout | completionError)

  // More invalidations than tags, all without an answer at first.
  engine.set(Engine.Register.control, Engine.Answer.later)
  for _ in 0..<60 { setup.enqueueInvalidation(of: page) }
  Report.check(
    "if there are more invalidations than tags, all complete", RemappingUnit.submitAndWait() && status() == 0)
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
    "a page request that the context entry forbids is invalid",
    setup.run(request(1), from: missingPage) == Engine.Result.invalidRequest && PageRequests.count == 0)
  setup.checkFault("the refused request is recorded", Reason.pageRequestNotEnabled, at: missingPage)
  store64(context, load64(context) | 1 << 4)
  RemappingUnit.invalidateEverything(isScalable: true)

  // The event must come once.
  RemappingUnit.setEvent(PageRequests.eventControl, vector: event, to: LocalAPIC.identifier)
  RemappingUnit.write32(PageRequests.eventControl, 0)
  enableInterrupts()
  let before = Interrupts.count(event)
  setup.begin(request(0x1a5), from: missingPage + 0x123)
  Report.check("a page request causes the page request event", soon { Interrupts.count(event) == before + 1 })
  Report.check("the function waits for its response", engine.get(Engine.Register.status) & 1 != 0)
  disableInterrupts()
  RemappingUnit.write32(PageRequests.eventControl, RemappingUnit.eventMask)
  let found = PageRequests.take()
  let prefix: UInt64 = setup.pasid == 0 ? 0 : 1 << 8 | setup.pasid << 32
  Report.check("the page request has the function's source-id", found?.low == 1 | prefix | engine.source << 16)
  Report.check("the page request has read, write, last, group and page", found?.high == missingPage | 0x1a5 << 3 | 7)
  Report.check(
    "the response reaches the function",
    respond(.success, 0x1a5) && engine.end() == Engine.Result.success)

  setup.begin(request(2, writes: false), from: missingPage)
  Report.check("a page request for a read has only read set", PageRequests.take()?.high == missingPage | 2 << 3 | 5)
  Report.check(
    "the response Invalid Request reaches the function",
    respond(.invalid, 2) && engine.end() == Engine.Result.invalidRequest)
  setup.begin(request(3), from: missingPage)
  _ = PageRequests.take()
  Report.check(
    "a response to another group does not end the request",
    respond(.success, 4) && engine.get(Engine.Register.status) & 1 != 0)
  Report.check(
    "the response Failure reaches the function", respond(.failure, 3) && engine.end() == Engine.Result.responseFailure)

  // The whole sequence: an access finds no page, requests it, and continues.
  let fresh = Pages.take()
  store64(setup.memory, marker)
  setup.begin(Engine.Operation.copy | Engine.byCache | Engine.requestPages | 9 << 16, from: page, to: missingPage + 8)
  Report.check(
    "an access to a missing page requests the page", (PageRequests.take()?.high ?? 0) & ~0xfff == missingPage)
  setup.tables.map(missingPage, to: fresh, setup.leaf)
  Report.check(
    "after the response the access continues",
    respond(.success, 9) && engine.end() == Engine.Result.success && load64(fresh + 8) == marker)
  store64(setup.tables.entry(missingPage, level: 1), 0)
  _ = RemappingUnit.invalidateTranslations()
  _ = setup.invalidateCache(missingPage)

  // Fill the queue: it holds one request less than it has entries. The next request overflows it. The unit cannot queue
  // that request, and answers it with success.
  Report.check("the queue is empty", PageRequests.count == 0)
  for _ in 0..<PageRequests.room { _ = setup.run(Engine.Operation.request | Engine.read, from: missingPage) }
  Report.check("a full queue is no overflow", PageRequests.count == PageRequests.room && !PageRequests.hasOverflowed)
  Report.check(
    "the unit answers a request beyond the queue's size with success",
    setup.run(request(7), from: missingPage) == Engine.Result.success)
  Report.check("a request beyond the queue's size sets PRO", PageRequests.hasOverflowed)
  PageRequests.drop()
  setup.begin(request(8), from: missingPage)
  Report.check(
    "after PRO is cleared the unit queues requests again",
    PageRequests.take() != nil && respond(.success, 8) && engine.end() == Engine.Result.success)
  RemappingUnit.checkNoFault("none of these requests causes a fault")
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
    return Report.fail("the unit offers no device-TLBs")
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
  RemappingUnit.checkNoFault("no fault record remains")
}
