/// Tests page requests of a function with PASID 0. RID_PASID is 0, so the function's requests without PASID use the
/// same table. The function requests a missing page, the kernel maps it, and the function writes to it. Other checks:
/// responses without a request; a long group; an overflow; a table that is replaced while a request is open (VT-d 7.4
/// to 7.7). The kernel works with an emulated function, and with a passed-through one, whose host answers the requests
/// that the guest leaves open.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-page-requests" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on,x-nested=on,pasid-bits=20,svm=on,device-iotlb=on \
///       -device dma-engine

private let page: UInt64 = 0x12_3456_7000
private let missingPage: UInt64 = 0x12_3456_a000
private let marker: UInt64 = 0x0123_4567_89ab_cdef
/// The offset of the status register in PRI's capability.
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
    // Requests without PASID also use the entry of PASID 0.
    entry = sources.makeScalable() - SourceTables.pasid * 64
    root = sources.root
    context = sources.scalableContextEntry
    store64(context + 8, 0)
    // Sets PRE, PASIDE and DTE: page requests, PASIDs and the device-TLB are enabled.
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
  put("capabilities of the function\n")
  let engine = setup.engine
  guard let translation = engine.capability(0x0f), let requests = engine.capability(0x13) else {
    Report.fail("the function has no ATS or no PRI")
    return false
  }
  Report.check("the function's page requests are stopped at the start", load16(requests + statusOffset) & 0x100 != 0)
  setup.begin(1)
  let result = engine.end()
  Report.check(
    "a page request before PRI is enabled does not reach the queue",
    (result == Engine.Result.notEnabled || result == Engine.Result.invalidRequest)
      && PageRequests.count == 0)
  engine.enablePASID()
  engine.enableTranslation()
  engine.enablePageRequests()
  Report.check("ATS is enabled", load16(translation + 6) & 0x8000 != 0)
  Report.check(
    "page requests are enabled", load16(requests + 4) & 1 != 0 && load16(requests + statusOffset) & 0x100 == 0)
  return true
}

private func checkTheWholeWay(_ setup: Setup) {
  put("a missing page\n")
  let engine = setup.engine
  setup.begin(0x1a5, at: missingPage + 0x123)
  let found = PageRequests.take()
  Report.check(
    "the page request has the function's source-id and PASID", found?.low == 1 | 1 << 8 | engine.source << 16)
  Report.check("the page request has the page, group, read and write", found?.high == missingPage | 0x1a5 << 3 | 7)
  Report.check("the function waits for the response", setup.isBusy)
  let fresh = Pages.take()
  setup.tables.map(missingPage, to: fresh, setup.tables.stage.rawValue)
  RemappingUnit.enqueue(0x6 | 3 << 4 | SourceTables.domain << 16, missingPage)
  Report.check(
    "after the response the function continues",
    setup.respond(.success, group: 0x1a5) && engine.end() == Engine.Result.success)
  Report.check(
    "the function writes to the page",
    setup.copy(from: page, to: missingPage + 8) == Engine.Result.success && load64(fresh + 8) == marker)
}

private func checkResponses(_ setup: Setup) {
  put("responses\n")
  let engine = setup.engine
  setup.begin(2)
  Report.check(
    "an invalid response ends the request as invalid",
    PageRequests.take() != nil && setup.respond(.invalid, group: 2)
      && engine.end() == Engine.Result.invalidRequest)
  setup.begin(3)
  Report.check(
    "a response to another group does not end the request",
    PageRequests.take() != nil && setup.respond(.success, group: 4) && setup.isBusy)
  // The second response to one group belongs to no request.
  PageRequests.enqueueResponse(.success, group: 3, of: engine.source, pasid: 0)
  Report.check(
    "a second response to a group has no effect",
    setup.respond(.invalid, group: 3) && engine.end() == Engine.Result.success)
  let status = (engine.capability(0x13) ?? 0) + statusOffset
  Report.check("a response without a request sets UPRGI", load16(status) & 2 != 0)
  store16(status, 2)
  Report.check("writing a one clears UPRGI", load16(status) & 2 == 0)
  setup.begin(5)
  Report.check(
    "the next request gets its response",
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
    if index < count - 1, engine.end() != Engine.Result.success {
      Report.fail("a request that is not the last of its group does not complete")
    }
  }
  var isWhole = true
  for index in 0..<count {
    let last: UInt64 = index == count - 1 ? 4 : 0
    if PageRequests.take()?.high != (missingPage + index << 12) | 6 << 3 | last | 3 { isWhole = false }
  }
  Report.check("the 80 requests of a group arrive in order", isWhole)
  Report.check(
    "one response ends a group of 80 requests",
    setup.respond(.success, group: 6) && engine.end() == Engine.Result.success)

  for index in 0...PageRequests.room {
    setup.begin(7, at: missingPage + index << 12, isLast: index == PageRequests.room)
    if index < PageRequests.room { _ = engine.end() }
  }
  Report.check("the unit answers a request beyond the queue's size with success", engine.end() == Engine.Result.success)
  Report.check("a request beyond the queue's size is an overflow", PageRequests.hasOverflowed)
  PageRequests.drop()
  setup.begin(8)
  Report.check(
    "after the overflow is cleared, requests arrive again",
    PageRequests.take() != nil && setup.respond(.success, group: 8)
      && engine.end() == Engine.Result.success)
}

private func checkReplacement(_ setup: Setup) {
  put("another table while a request is open\n")
  let engine = setup.engine
  setup.begin(9)
  Report.check("a request waits for its response", PageRequests.take() != nil && setup.isBusy)
  let other = PagingTables(.first)
  let target = Pages.take()
  other.map(page, to: setup.memory, other.stage.rawValue)
  other.map(missingPage, to: target, other.stage.rawValue)
  SourceTables.setFirstStage(setup.entry, table: other.root)
  RemappingUnit.invalidateEverything(isScalable: true)
  _ = setup.respond(.success, group: 9)
  let result = engine.end()
  // The host answers open requests of a table that it removes as invalid.
  Report.check(
    "the open request gets an answer", result == Engine.Result.success || result == Engine.Result.invalidRequest)
  Report.check(
    "the function uses the new table",
    setup.copy(from: page, to: missingPage) == Engine.Result.success && load64(target) == marker)
  setup.begin(10, at: missingPage + 0x1000)
  Report.check(
    "page requests with the new table arrive",
    PageRequests.take()?.high == missingPage + 0x1000 | 10 << 3 | 7
      && setup.respond(.success, group: 10)
      && engine.end() == Engine.Result.success)

  put("without a table, and with a table again\n")
  store64(setup.entry, 0)
  RemappingUnit.invalidateEverything(isScalable: true)
  Report.check("without a table DMA is refused", setup.copy(from: page, to: missingPage) == Engine.Result.refused)
  // Takes the fault of an emulated function. The fault of a passed-through function is recorded only on the host.
  while RemappingUnit.takeFault() != nil {}
  SourceTables.setFirstStage(setup.entry, table: setup.tables.root)
  RemappingUnit.invalidateEverything(isScalable: true)
  setup.begin(11, at: missingPage + 0x2000)
  Report.check(
    "with a table again page requests arrive",
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
  RemappingUnit.checkNoFault("no fault record remains")
}
