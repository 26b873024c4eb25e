/// Page requests of a function whose requests carry PASID 0, the PASID of its requests without (RID_PASID): a page that
/// is missing is asked for, mapped, and written to; responses that fit nothing; a long group; an overflow; a table that
/// is replaced meanwhile (VT-d 7.4 to 7.7). It is the same for an emulated function and for one that is passed through,
/// whose host answers what the guest leaves open.

private let page: UInt64 = 0x12_3456_7000
private let missingPage: UInt64 = 0x12_3456_a000
private let marker: UInt64 = 0x0123_4567_89ab_cdef
/// Of PRI's capability.
private let statusOffset: UInt64 = 6

private struct Setup {
  let engine: Engine
  let tables = PagingTables(.first)
  let memory = Pages.take()
  let entry: UInt64
  let root: UInt64
  let context: UInt64

  init(engine: Engine) {
    self.engine = engine
    let sources = SourceTables(source: engine.source)
    // The entry of PASID 0 is that of requests without PASID, too.
    entry = sources.makeScalable() - SourceTables.pasid * 64
    root = sources.root
    context = sources.scalableContextEntry
    store64(context + 8, 0)
    // PRE, PASIDE, DTE.
    store64(context, load64(context) | 1 << 4 | 1 << 3 | 1 << 2)
    SourceTables.setFirstStage(entry, table: tables.root)
    store64(memory, marker)
    tables.map(page, to: memory, tables.stage.rawValue)
  }

  func copy(from source: UInt64, to destination: UInt64) -> UInt32 {
    engine.run(Engine.Operation.copy, from: source, to: destination)
  }

  func begin(_ group: UInt64, at address: UInt64 = missingPage, isLast: Bool = true) {
    let command =
      Engine.Operation.request | Engine.withPASID | Engine.read | Engine.write | (isLast ? Engine.lastInGroup : 0)
    engine.begin(command | UInt32(group) << 16, pasid: 0, from: address)
  }

  func respond(_ code: PageRequests.Code, group: UInt64) -> Bool {
    PageRequests.respond(code, group: group, of: engine.source, pasid: 0)
  }

  var isBusy: Bool { engine.get(Engine.Register.status) & 1 != 0 }
}

private func checkView(_ setup: Setup) -> Bool {
  put("what the function shows\n")
  let engine = setup.engine
  guard let translation = engine.capability(0x0f), let requests = engine.capability(0x13) else {
    Report.fail("it shows ATS and PRI")
    return false
  }
  Report.check("page requests are stopped at first", load16(requests + statusOffset) & 0x100 != 0)
  setup.begin(1)
  let result = engine.end()
  Report.check(
    "and nobody sees one",
    (result == Engine.Result.notEnabled || result == Engine.Result.invalidRequest)
      && PageRequests.count == 0)
  engine.enablePASID()
  engine.enableTranslation()
  engine.enablePageRequests()
  Report.check("ATS is enabled", load16(translation + 6) & 0x8000 != 0)
  Report.check("so are page requests", load16(requests + 4) & 1 != 0 && load16(requests + statusOffset) & 0x100 == 0)
  return true
}

private func checkTheWholeWay(_ setup: Setup) {
  put("a page that is missing\n")
  let engine = setup.engine
  setup.begin(0x1a5, at: missingPage + 0x123)
  let found = PageRequests.take()
  Report.check("its request comes: who", found?.low == 1 | 1 << 8 | engine.source << 16)
  Report.check("and what", found?.high == missingPage | 0x1a5 << 3 | 7)
  Report.check("the function waits", setup.isBusy)
  let fresh = Pages.take()
  setup.tables.map(missingPage, to: fresh, setup.tables.stage.rawValue)
  RemappingUnit.enqueue(0x6 | 3 << 4 | SourceTables.domain << 16, missingPage)
  Report.check(
    "mapped and answered, it goes on",
    setup.respond(.success, group: 0x1a5) && engine.end() == Engine.Result.success)
  Report.check(
    "and writes to the page",
    setup.copy(from: page, to: missingPage + 8) == Engine.Result.success && load64(fresh + 8) == marker)
}

private func checkResponses(_ setup: Setup) {
  put("responses\n")
  let engine = setup.engine
  setup.begin(2)
  Report.check(
    "an invalid request",
    PageRequests.take() != nil && setup.respond(.invalid, group: 2)
      && engine.end() == Engine.Result.invalidRequest)
  setup.begin(3)
  Report.check(
    "another group's answers nothing",
    PageRequests.take() != nil && setup.respond(.success, group: 4) && setup.isBusy)
  // Two of the same: the second has none to answer.
  PageRequests.enqueueResponse(.success, group: 3, of: engine.source, pasid: 0)
  Report.check(
    "a response twice", setup.respond(.invalid, group: 3) && engine.end() == Engine.Result.success)
  let status = (engine.capability(0x13) ?? 0) + statusOffset
  Report.check("what fits nothing shows", load16(status) & 2 != 0)
  store16(status, 2)
  Report.check("and is cleared by a one", load16(status) & 2 == 0)
  setup.begin(5)
  Report.check(
    "the next one is served",
    PageRequests.take() != nil && setup.respond(.success, group: 5)
      && engine.end() == Engine.Result.success
  )
}

private func checkGroups(_ setup: Setup) {
  put("groups\n")
  let engine = setup.engine
  let count: UInt64 = 80
  for index in 0..<count {
    setup.begin(6, at: missingPage + index << 12, isLast: index == count - 1)
    if index < count - 1, engine.end() != Engine.Result.success { Report.fail("one that is not the last") }
  }
  var isWhole = true
  for index in 0..<count {
    let last: UInt64 = index == count - 1 ? 4 : 0
    if PageRequests.take()?.high != (missingPage + index << 12) | 6 << 3 | last | 3 { isWhole = false }
  }
  Report.check("a group of 80 comes in its order", isWhole)
  Report.check(
    "and has one response", setup.respond(.success, group: 6) && engine.end() == Engine.Result.success)

  for index in 0...PageRequests.room {
    setup.begin(7, at: missingPage + index << 12, isLast: index == PageRequests.room)
    if index < PageRequests.room { _ = engine.end() }
  }
  Report.check("one too many is answered with success", engine.end() == Engine.Result.success)
  Report.check("and is an overflow", PageRequests.hasOverflowed)
  PageRequests.drop()
  setup.begin(8)
  Report.check(
    "after that they are served again",
    PageRequests.take() != nil && setup.respond(.success, group: 8)
      && engine.end() == Engine.Result.success)
}

private func checkReplacement(_ setup: Setup) {
  put("another table meanwhile\n")
  let engine = setup.engine
  setup.begin(9)
  Report.check("a request is open", PageRequests.take() != nil && setup.isBusy)
  let other = PagingTables(.first)
  let target = Pages.take()
  other.map(page, to: setup.memory, other.stage.rawValue)
  other.map(missingPage, to: target, other.stage.rawValue)
  SourceTables.setFirstStage(setup.entry, table: other.root)
  RemappingUnit.invalidateEverything(isScalable: true)
  _ = setup.respond(.success, group: 9)
  let result = engine.end()
  // The host answers those of a table that it takes away, as invalid.
  Report.check("it is answered", result == Engine.Result.success || result == Engine.Result.invalidRequest)
  Report.check(
    "the function goes by the new table",
    setup.copy(from: page, to: missingPage) == Engine.Result.success && load64(target) == marker)
  setup.begin(10, at: missingPage + 0x1000)
  Report.check(
    "and asks for its pages",
    PageRequests.take()?.high == missingPage + 0x1000 | 10 << 3 | 7
      && setup.respond(.success, group: 10)
      && engine.end() == Engine.Result.success)

  put("without a table, and with one again\n")
  store64(setup.entry, 0)
  RemappingUnit.invalidateEverything(isScalable: true)
  Report.check("nothing is reached", setup.copy(from: page, to: missingPage) == Engine.Result.refused)
  // Of an emulated function; a host's stays with the host.
  while RemappingUnit.takeFault() != nil {}
  SourceTables.setFirstStage(setup.entry, table: setup.tables.root)
  RemappingUnit.invalidateEverything(isScalable: true)
  setup.begin(11, at: missingPage + 0x2000)
  Report.check(
    "page requests come again",
    PageRequests.take()?.high == missingPage + 0x2000 | 11 << 3 | 7
      && setup.respond(.success, group: 11)
      && engine.end() == Engine.Result.success)
}

func kernelMain() {
  guard let engine = Engine.find() else { return Report.fail("there is no dma-engine") }
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.firstStage),
    RemappingUnit.offers(RemappingUnit.pageRequests)
  else {
    return Report.fail("the unit offers no first stage, or no page requests")
  }
  let setup = Setup(engine: engine)
  PageRequests.startQueue()
  guard RemappingUnit.translate(root: setup.root, isScalable: true) else { return }
  guard checkView(setup) else { return }
  checkTheWholeWay(setup)
  checkResponses(setup)
  checkGroups(setup)
  checkReplacement(setup)
  RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false)
  RemappingUnit.checkNoFault("no fault is left")
}
