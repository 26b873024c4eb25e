/// Tests PASIDs: that each PASID uses its own tables, with first stage, second stage, nested and pass-through; that a
/// request without PASID uses the tables of RID_PASID; privilege; the PASID in fault records; and invalidations of one
/// PASID. VT-d 4.1, 3.4.3, 3.10 and 7.1.3; 9.4 to 9.6 for the entries.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-pasid" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on,x-nested=on,pasid-bits=20,device-iotlb=on -device dma-engine

private let page: UInt64 = 0x12_3456_7000
private let readOnlyPage: UInt64 = 0x12_3456_8000
private let supervisorPage: UInt64 = 0x12_3456_9000
private let missingPage: UInt64 = 0x12_3456_a000
private let sink: UInt64 = 0x12_3460_0000
private let leaf = PagingTables.present | PagingTables.writable | PagingTables.user

/// The PASIDs of this test. `one` and `two` have first-stage tables, and `missing` has no entry. The other names
/// describe the entry.
private enum Number {
  static var withoutPASID: UInt64 { SourceTables.pasid }
  static let one: UInt64 = 5
  static let two: UInt64 = 6
  static let second: UInt64 = 7
  static let nested: UInt64 = 8
  static let passThrough: UInt64 = 9
  static let missing: UInt64 = 10
}

private enum Reason {
  static let pasidNotEnabled: UInt64 = 0x45
  static let pasidBeyondDirectory: UInt64 = 0x46
  static let pasidEntryNotPresent: UInt64 = 0x59
  static let supervisorNotEnabled: UInt64 = 0x5d
  static let entryNotPresent: UInt64 = 0x71
  static let userPrivilege: UInt64 = 0x81
  static let writePermission: UInt64 = 0x85
  static let interruptAddress: UInt64 = 0x87
  static let inLegacyMode: UInt64 = 0x31
}

/// The tables of one PASID, and the content of its pages.
private struct Space {
  let tables: PagingTables
  let memory = Pages.take()
  let result = Pages.take()
  let mark: UInt64

  init(_ stage: PagingTables.Stage, mark: UInt64) {
    tables = PagingTables(stage)
    self.mark = mark
    store64(memory, mark)
    tables.map(page, to: memory, stage.rawValue)
    tables.map(sink, to: result, stage.rawValue)
    if stage == .first {
      tables.map(readOnlyPage, to: Pages.take(), leaf & ~PagingTables.writable)
      tables.map(supervisorPage, to: Pages.take(), leaf & ~PagingTables.user)
    }
  }

  /// Returns whether a PASID reads this space's page and writes to this space's sink.
  func serves(_ engine: Engine, _ pasid: UInt64?) -> Bool {
    store64(result, 0)
    let flags: UInt32 = pasid == nil ? 0 : Engine.withPASID
    return engine.run(Engine.Operation.copy | flags, pasid: pasid ?? 0, from: page, to: sink) == Engine.Result.success
      && load64(result) == mark
  }
}

/// Checks all fields of the fault record, with the PASID (PP: it is present; PV: its value) and the requested privilege
/// (PRIV).
private func checkFault(
  _ name: StaticString, _ reason: UInt64, source: UInt64, pasid: UInt64, at address: UInt64, isRead: Bool,
  isPrivileged: Bool = false
) {
  let fault = RemappingUnit.takeFault()
  // PRIV is bit 29 and PV is 59:40 of the upper half: VT-d 11.4.7.6.
  if let fault, fault.reason == reason, fault.source == source, fault.address == address & ~0xfff,
    fault.isRead == isRead, fault.hasPASID, fault.high >> 40 & 0xf_ffff == pasid,
    (fault.high >> 29 & 1 != 0) == isPrivileged
  {
    return Report.pass(name)
  }
  RemappingUnit.fail(name, recorded: fault, wanted: (reason, address))
}

private func checkSpaces(_ engine: Engine, _ sources: SourceTables, _ own: UInt64) {
  let hasSecond = RemappingUnit.offers(RemappingUnit.secondStage)
  let isNested = RemappingUnit.offers(RemappingUnit.nestedTranslation)
  let table = own - Number.withoutPASID * 64
  let base = Space(.first, mark: 0x100)
  let one = Space(.first, mark: 0x101)
  let two = Space(.first, mark: 0x102)
  SourceTables.setFirstStage(own, table: base.tables.root)
  SourceTables.setFirstStage(table + Number.one * 64, table: one.tables.root)
  // All first-stage PASIDs share one domain, so only the PASID distinguishes their cached pages.
  SourceTables.setFirstStage(table + Number.two * 64, table: two.tables.root)
  let second = Space(.second, mark: 0x103)
  if hasSecond { SourceTables.setSecondStage(table + Number.second * 64, table: second.tables.root, domain: 0x30) }
  // Nested: the second stage maps all of the machine's memory to itself.
  let over = PagingTables(.second)
  let nested = Space(.first, mark: 0x104)
  if isNested {
    over.map(0, to: 0, level: 3, 3)
    SourceTables.setNested(table + Number.nested * 64, table: nested.tables.root, over: over.root, domain: 0x31)
  }
  SourceTables.setPassThrough(table + Number.passThrough * 64, domain: 0x32)
  guard RemappingUnit.translate(root: sources.root, isScalable: true) else { return }

  put("each PASID has its own tables\n")
  Report.check("a request without PASID uses RID_PASID's tables", base.serves(engine, nil))
  Report.check("a request with a PASID uses the tables of that PASID", one.serves(engine, Number.one))
  Report.check("a request with another PASID uses the tables of the other PASID", two.serves(engine, Number.two))
  Report.check(
    "alternating requests use the tables of their PASIDs",
    one.serves(engine, Number.one) && base.serves(engine, nil) && two.serves(engine, Number.two))
  if hasSecond {
    Report.check("a request with a second-stage PASID is translated", second.serves(engine, Number.second))
  }
  if isNested { Report.check("a request with a nested PASID is translated", nested.serves(engine, Number.nested)) }
  store64(two.result, 0)
  Report.check(
    "a request with a pass-through PASID uses a physical address",
    engine.run(Engine.Operation.copy | Engine.withPASID, pasid: Number.passThrough, from: one.memory, to: two.result)
      == Engine.Result.success && load64(two.result) == one.mark)
  RemappingUnit.checkNoFault("none of these requests causes a fault")

  checkFaults(engine, sources)
  checkPrivilege(engine, table + Number.one * 64)
  checkInvalidations(engine, one, two, base)
}

private func checkFaults(_ engine: Engine, _ sources: SourceTables) {
  put("faults\n")
  func refuses(_ name: StaticString, _ reason: UInt64, pasid: UInt64, at address: UInt64, writes: Bool = false) {
    let result = engine.run(
      Engine.Operation.copy | Engine.withPASID, pasid: pasid, from: writes ? page : address, to: writes ? address : sink
    )
    if result != Engine.Result.refused {
      Report.fail("the device does not report a refusal in the check of the next line")
    }
    checkFault(name, reason, source: engine.source, pasid: pasid, at: address, isRead: !writes)
  }
  refuses("a page that is not present is a fault", Reason.entryNotPresent, pasid: Number.one, at: missingPage)
  refuses(
    "a write to a read-only page is a fault", Reason.writePermission, pasid: Number.two, at: readOnlyPage, writes: true)
  refuses("a read of a supervisor page is a fault", Reason.userPrivilege, pasid: Number.one, at: supervisorPage)
  refuses(
    "a PASID-table entry that is not present is a fault", Reason.pasidEntryNotPresent, pasid: Number.missing, at: page)
  refuses("a PASID beyond the directory is a fault", Reason.pasidBeyondDirectory, pasid: 128 * 64, at: page)
  refuses(
    "a request with PASID to the interrupt range is a fault", Reason.interruptAddress, pasid: Number.one,
    at: 0xfee0_0000)
  let context = sources.scalableContextEntry
  let kept = load64(context)
  store64(context, kept & ~(1 << 3))
  RemappingUnit.invalidateEverything(isScalable: true)
  refuses(
    "a request with PASID is a fault if the context entry does not enable PASIDs", Reason.pasidNotEnabled,
    pasid: Number.one, at: page)
  store64(context, kept)
  RemappingUnit.invalidateEverything(isScalable: true)
}

private func checkPrivilege(_ engine: Engine, _ entry: UInt64) {
  put("privilege\n")
  guard RemappingUnit.offers(RemappingUnit.supervisorRequests) else { return }
  let command = Engine.Operation.copy | Engine.withPASID | Engine.privileged
  func run() -> UInt32 { engine.run(command, pasid: Number.one, from: supervisorPage, to: sink) }
  _ = run()
  checkFault(
    "a privileged request without SRE is a fault", Reason.supervisorNotEnabled, source: engine.source,
    pasid: Number.one, at: supervisorPage, isRead: true, isPrivileged: true)
  store64(entry + 16, load64(entry + 16) | 1)
  RemappingUnit.invalidateEverything(isScalable: true)
  Report.check("with SRE a privileged request reads a supervisor page", run() == Engine.Result.success)
  Report.check(
    "with SRE a privileged request writes a read-only page",
    engine.run(command, pasid: Number.one, from: page, to: readOnlyPage) == Engine.Result.success)
  store64(entry + 16, load64(entry + 16) | 1 << 4)
  RemappingUnit.invalidateEverything(isScalable: true)
  _ = engine.run(command, pasid: Number.one, from: page, to: readOnlyPage)
  checkFault(
    "with WPE a privileged write to a read-only page is a fault", Reason.writePermission, source: engine.source,
    pasid: Number.one, at: readOnlyPage,
    isRead: false, isPrivileged: true)
  store64(entry + 16, load64(entry + 16) & ~0x11)
  RemappingUnit.invalidateEverything(isScalable: true)
}

private func checkInvalidations(_ engine: Engine, _ one: Space, _ two: Space, _ base: Space) {
  put("caches of each PASID\n")
  let domain = SourceTables.domain
  let entry = one.tables.entry(page, level: 1)
  let other = Space(.first, mark: one.mark)
  store64(other.memory, one.mark)
  Report.check("a request caches its page", one.serves(engine, Number.one))
  store64(one.memory, 0)
  store64(entry, other.memory | leaf)
  func isStale() -> Bool { !one.serves(engine, Number.one) }
  Report.check("a changed entry has no effect before an invalidation", isStale())
  _ = RemappingUnit.invalidatePage(page, pasid: Number.two, domain: domain)
  Report.check("an invalidation of another PASID leaves the page cached", isStale())
  _ = RemappingUnit.invalidatePage(page, pasid: Number.one, domain: domain + 1)
  Report.check("an invalidation of another domain leaves the page cached", isStale())
  _ = RemappingUnit.invalidateTranslations(pasid: Number.withoutPASID, domain: domain)
  Report.check("an invalidation of RID_PASID leaves the page cached", isStale())
  _ = RemappingUnit.invalidatePage(page, pasid: Number.one, domain: domain)
  Report.check(
    "after an invalidation of the page for its PASID the new entry has effect", one.serves(engine, Number.one))
  Report.check("the other PASIDs still translate", two.serves(engine, Number.two) && base.serves(engine, nil))
  RemappingUnit.checkNoFault("none of these requests causes a fault")
}

private func checkLegacy(_ engine: Engine) {
  put("legacy mode\n")
  let tables = PagingTables(.second)
  tables.map(page, to: Pages.take(), 3)
  let sources = SourceTables(source: engine.source)
  sources.setLegacy(type: 0, table: tables.root)
  guard RemappingUnit.translate(root: sources.root, isScalable: false) else { return }
  Report.check(
    "in legacy mode a request with PASID is refused",
    engine.run(Engine.Operation.copy | Engine.withPASID, pasid: Number.one, from: page, to: page)
      == Engine.Result.refused)
  checkFault(
    "the refused request with PASID is recorded", Reason.inLegacyMode, source: engine.source, pasid: Number.one,
    at: page, isRead: true)
}

func kernelMain() {
  guard let engine = Engine.find() else { return Report.fail("there is no dma-engine") }
  guard RemappingUnit.isThere, RemappingUnit.offers(RemappingUnit.firstStage),
    RemappingUnit.offers(RemappingUnit.pasids)
  else {
    return Report.fail("the unit offers no first stage, or no PASIDs")
  }
  Report.check("dma-engine has ATS, PRI and PASID", engine.hasCapabilities)
  let sources = SourceTables(source: engine.source)
  let own = sources.makeScalable()
  store64(sources.scalableContextEntry, load64(sources.scalableContextEntry) | 1 << 3)
  engine.enablePASID(false)
  Report.check(
    "while its PASID Enable bit is 0, dma-engine makes no request with PASID",
    engine.run(Engine.Operation.copy | Engine.withPASID, pasid: 1, from: Pages.take(), to: Pages.take())
      == Engine.Result.notEnabled)
  engine.enablePASID()
  checkSpaces(engine, sources, own)
  checkLegacy(engine)
  RemappingUnit.command(RemappingUnit.Command.translationEnable, on: false)
  RemappingUnit.checkNoFault("no fault record remains")
}
