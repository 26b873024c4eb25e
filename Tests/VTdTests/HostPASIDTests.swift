import Hardware
import Synchronization
import Testing
import VTdOracle

@testable import VTd

/// Tests which calls the unit makes to the host when the guest changes its PASID tables.
@Suite("host bindings of PASIDs")
struct HostPASIDTests {
  typealias Cache = CacheTests
  typealias Bindings = HostBindingTests
  typealias Event = RecordingHost.Event

  /// Two functions with 20 bits of PASID. Their context entries have the same PASID directory, whose entry of PASID 0
  /// passes requests through.
  struct Setup {
    let guest: Guest
    let host = RecordingHost()
    let bindings: HostBindings
    let tables: Guest.ScalableTables
    let function: RecordingHost.Function
    let other: RecordingHost.Function

    init(width: Int = 20, _ options: (inout UnitOptions) -> Void = { _ in }) throws {
      guest = try Guest.firstStage {
        $0.cachingMode = true
        $0.pasidBits = 20
        options(&$0)
      }
      tables = guest.scalableTables(source: Bindings.source, words: Bindings.passThrough)
      guest.store(guest.load(tables.context) | 1 << 3 | 7 << 9, at: tables.context)  // PASIDE, 2^14 directory entries
      for word: UInt64 in 0..<4 {
        guest.store(guest.load(tables.context + word * 8), at: tables.context + 0x100 + word * 8)
      }
      // The directory has 32 pages.
      let directory = guest.page(count: 32)
      guest.store(guest.load(tables.directory), at: directory)
      for context in [tables.context, tables.context + 0x100] {
        guest.store(guest.load(context) & 0xfff | directory, at: context)
      }
      guest.enableQueue(wide: true, pages: 4)
      bindings = HostBindings(unit: guest.unit)
      function = RecordingHost.Function("a", host, pasidWidth: width)
      other = RecordingHost.Function("b", host, pasidWidth: width)
    }

    /// Enables translation and adds the first function.
    func start() {
      guest.setRootTable(tables.root, scalable: true)
      guest.enableTranslation()
      bindings.add(function, for: Requester(id: Bindings.source))
      _ = host.take()
    }

    func addOther() { bindings.add(other, for: Requester(id: Bindings.neighbour)) }

    var directory: UInt64 { guest.load(tables.context) & ~0xfff }

    /// Writes a PASID-table entry, and creates its table.
    func write(_ pasid: UInt32, _ words: (UInt64, UInt64, UInt64)) {
      let slot = directory + UInt64(pasid >> 6) * 8
      if guest.load(slot) == 0 { guest.store(guest.page() | 1, at: slot) }
      let entry = guest.load(slot) & ~0xfff + UInt64(pasid & 0x3f) * 64
      guest.store(words.1, at: entry + 8)
      guest.store(words.2, at: entry + 16)
      guest.store(words.0, at: entry)
    }
    func write(_ pasid: UInt32, _ root: UInt64, domain: UInt16 = 5) {
      write(pasid, Bindings.entry(root, domain: domain))
    }
    func clear(_ pasid: UInt32) { write(pasid, (0, 0, 0)) }

    /// Writes an entry and invalidates it, as software does.
    func set(_ pasid: UInt32, _ root: UInt64, domain: UInt16 = 5) {
      write(pasid, root, domain: domain)
      #expect(guest.submitAndWait(Self.selective(pasid, domain: domain)))
    }

    static func selective(_ pasid: UInt32, domain: UInt64 = 5) -> [UInt64] {
      Cache.pasidCache(1, domain: domain, pasid: UInt64(pasid))
    }
    static func selective(_ pasid: UInt32, domain: UInt16) -> [UInt64] { selective(pasid, domain: UInt64(domain)) }

    func binding(_ pasid: UInt32) -> HostBinding? { bindings.binding(of: function, pasid: pasid) }
    var bound: [UInt32] { bindings.boundFunctions.first?.pasids.map(\.pasid) ?? [] }
  }

  static func stage(_ pasid: UInt32, _ root: UInt64, domain: UInt16 = 5) -> GuestFirstStage {
    Bindings.stage(root, domain: domain, pasid: pasid)
  }
  static func bind(_ pasid: UInt32, _ root: UInt64, domain: UInt16 = 5, _ name: String = "a") -> Event {
    .bindPASID(name, pasid, .firstStage(stage(pasid, root, domain: domain)))
  }
  static let notPresent = HostBinding.blocked(.entry(.pasidEntryNotPresent))

  // MARK: PASIDs come, change and go

  @Test("a PASID-selective invalidation binds, replaces and detaches its PASID")
  func selective() throws {
    let setup = try Setup()
    setup.start()
    setup.write(7, 0x20_0000)
    #expect(setup.host.take() == [], "an entry is not read until it is invalidated")
    #expect(setup.guest.submitAndWait(Setup.selective(8), Setup.selective(9)))
    #expect(setup.host.take() == [], "other PASIDs are not bound")
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(setup.host.take() == [Self.bind(7, 0x20_0000)])
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(setup.host.take() == [], "an unchanged entry is not bound again")

    setup.write(7, 0x30_0000, domain: 6)
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(setup.host.take() == [Self.bind(7, 0x30_0000, domain: 6), .free(Self.stage(7, 0x20_0000))])
    setup.clear(7)
    #expect(setup.guest.submitAndWait(Setup.selective(7, domain: 5 as UInt16)))
    #expect(setup.host.take() == [], "the entry has another domain")
    #expect(setup.guest.submitAndWait(Setup.selective(7, domain: 6 as UInt16)))
    #expect(setup.host.take() == [.bindPASID("a", 7, Self.notPresent), .free(Self.stage(7, 0x30_0000, domain: 6))])
    #expect(setup.binding(7) == nil && setup.bound == [])
    #expect(setup.bindings.binding(of: setup.function) == .secondStage, "requests without PASID keep their binding")
    #expect(setup.guest.takeFault() == nil)
  }

  /// The queue passes the invalidations on before it executes the wait descriptor.
  @Test("a PASID is off before the wait descriptor behind its invalidation completes")
  func orderOfTeardown() throws {
    final class Watcher: HostTranslation {
      let pasidWidth = 20
      let memory: any PhysicalMemory
      let address: UInt64
      let statusAtDetach = Mutex<UInt32?>(nil)
      init(_ guest: Guest) { (memory, address) = (guest.memory, guest.statusPage) }
      var status: UInt32? { memory.loadUInt32(at: address) }
      func bind(_ pasid: UInt32?, to binding: HostBinding) throws(HostRefusal) -> (any HostFirstStage)? {
        if pasid == 7, case .blocked = binding { statusAtDetach.withLock { $0 = status } }
        return nil
      }
    }
    let setup = try Setup()
    setup.start()
    let watcher = Watcher(setup.guest)
    setup.bindings.add(watcher, for: Requester(id: Bindings.neighbour))
    setup.set(7, 0x20_0000)
    let before = try #require(watcher.status)
    setup.clear(7)
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(watcher.statusAtDetach.withLock { $0 } == before && watcher.status != before)
  }

  @Test("an invalidation that names no PASID finds those that have become present, and drops those that have not")
  func unnamed() throws {
    let covering: [[UInt64]] = [
      Cache.contextCache(1), Cache.contextCache(2, domain: 1), Cache.contextCache(3, source: 0x18),
      Cache.contextCache(3, source: 0x19, mask: 3), Cache.pasidCache(3), Cache.pasidCache(0, domain: 5),
    ]
    let others: [[UInt64]] = [
      Cache.contextCache(3, source: 0x20), Cache.iotlb(1), Cache.iotlb(2, domain: 5),
      Cache.pasidIOTLB(2, domain: 5, pasid: 7), [4, 0],
    ]
    for descriptor in covering {
      let setup = try Setup()
      setup.start()
      setup.set(7, 0x20_0000)
      setup.set(8, 0x28_0000)
      _ = setup.host.take()
      setup.write(7, 0x30_0000)
      setup.clear(8)
      setup.write(70, 0x40_0000)
      setup.write(0xf_ffff, 0x50_0000)
      for other in others { #expect(setup.guest.submitAndWait(other)) }
      #expect(
        !setup.host.take().contains { if case .bindPASID = $0 { true } else { false } }, "no entry is covered")
      #expect(setup.guest.submitAndWait(descriptor))
      #expect(
        setup.host.take() == [
          Self.bind(7, 0x30_0000), .bindPASID("a", 8, Self.notPresent), Self.bind(70, 0x40_0000),
          Self.bind(0xf_ffff, 0x50_0000), .free(Self.stage(7, 0x20_0000)), .free(Self.stage(8, 0x28_0000)),
        ], "\(descriptor)")
      #expect(setup.guest.submitAndWait(descriptor))
      #expect(setup.host.take() == [])
    }
  }

  @Test("a function that is added binds the PASIDs that are present, and a removed one gets no more calls")
  func addAndRemove() throws {
    let setup = try Setup()
    setup.write(3, 0x20_0000)
    setup.write(4, Bindings.passThrough)
    setup.start()
    #expect(setup.bound == [3, 4] && setup.binding(4) == .secondStage)
    setup.addOther()
    #expect(
      setup.host.take() == [.bind("b", .secondStage), Self.bind(3, 0x20_0000, "b"), .bindPASID("b", 4, .secondStage)])
    setup.bindings.remove(setup.function)
    #expect(setup.host.take() == [], "the other function keeps the table")
    setup.clear(3)
    #expect(setup.guest.submitAndWait(Setup.selective(3)))
    #expect(setup.host.take() == [.bindPASID("b", 3, Self.notPresent), .free(Self.stage(3, 0x20_0000))])
  }

  @Test("PASIDs are off while translation is off, after a reset, and while the context entry does not allow them")
  func modes() throws {
    let setup = try Setup()
    setup.write(3, 0x20_0000)
    setup.start()
    let (guest, host) = (setup.guest, setup.host)
    let freed = Event.free(Self.stage(3, 0x20_0000))
    guest.command(clear: 31)
    #expect(host.take() == [.bindPASID("a", 3, .blocked(.entry(.pasidNotEnabled))), freed])
    guest.enableTranslation()
    #expect(host.take() == [Self.bind(3, 0x20_0000)])

    let context = guest.load(setup.tables.context)
    guest.store(context & ~(1 << 3), at: setup.tables.context)
    #expect(guest.submitAndWait(Setup.selective(3)))
    #expect(host.take() == [.bindPASID("a", 3, .blocked(.entry(.pasidNotEnabled))), freed])
    guest.store(context, at: setup.tables.context)
    #expect(guest.submitAndWait(Cache.contextCache(3, source: 0x18)))
    #expect(host.take() == [Self.bind(3, 0x20_0000)])

    // A root table without context entries, then the former one.
    guest.setRootTable(guest.page(), scalable: true)
    #expect(
      host.take() == [
        .bindPASID("a", 3, .blocked(.entry(.scalableRootEntryNotPresent))),
        .bind("a", .blocked(.entry(.scalableRootEntryNotPresent))), freed,
      ])
    guest.setRootTable(setup.tables.root, scalable: true)
    #expect(host.take() == [.bind("a", .secondStage), Self.bind(3, 0x20_0000)])
    // Legacy mode has no PASIDs.
    guest.setRootTable(setup.tables.root, scalable: false)
    #expect(host.take().first == .bindPASID("a", 3, .blocked(.entry(.pasidInLegacyMode))))
    guest.setRootTable(setup.tables.root, scalable: true)
    _ = host.take()
    guest.unit.reset()
    #expect(host.take().first == .bindPASID("a", 3, .blocked(.entry(.pasidNotEnabled))) && setup.bound == [])
  }

  @Test("only PASIDs that the function and the unit have are bound, and never PASID 0")
  func widths() throws {
    for (function, unit, expected) in [(0, 20, []), (4, 20, [1, 15]), (20, 4, [1, 15]), (8, 20, [1, 15, 16, 255])] {
      let setup = try Setup(width: function) { $0.pasidBits = unit }
      let all: [UInt32] = [1, 15, 16, 255, 256, 0xf_ffff]
      for pasid in all { setup.write(pasid, 0x20_0000) }
      setup.write(0, 0x20_0000)
      setup.start()
      #expect(setup.bound == expected.map { UInt32($0) })
      for pasid in [0] + all { #expect(setup.guest.submitAndWait(Setup.selective(pasid))) }
      #expect(setup.bound == expected.map { UInt32($0) })
    }
  }

  @Test(
    "a PASID that is also RID_PASID shares its table with requests without PASID, and follows each change of RID_PASID")
  func ridPASID() throws {
    let setup = try Setup { $0.nested = true }
    setup.start()
    setup.set(7, 0x20_0000)
    setup.set(8, 0x30_0000)
    _ = setup.host.take()
    let (guest, host) = (setup.guest, setup.host)
    guest.store(7, at: setup.tables.context + 8)
    #expect(guest.submitAndWait(Setup.selective(7), Setup.selective(8)))
    #expect(host.take() == [], "the context entry is not read until it is invalidated")
    #expect(guest.submitAndWait(Cache.contextCache(3, source: 0x18)))
    #expect(host.take() == [.bind("a", .firstStage(Self.stage(7, 0x20_0000)))])
    // One call for both users of the table.
    #expect(guest.submitAndWait(Cache.pasidIOTLB(2, domain: 5, pasid: 7)))
    #expect(host.take() == [.invalidate(Self.stage(7, 0x20_0000), [.all])])
    // The entry of PASID 0 no longer concerns the function; that of PASID 7 concerns both.
    setup.write(0, 0x60_0000)
    setup.write(7, 0x50_0000)
    #expect(guest.submitAndWait(Setup.selective(0), Setup.selective(7)))
    let stage = Self.stage(7, 0x50_0000)
    #expect(
      host.take() == [
        .bindPASID("a", 7, .firstStage(stage)), .bind("a", .firstStage(stage)), .free(Self.stage(7, 0x20_0000)),
      ])
    guest.store(8, at: setup.tables.context + 8)
    #expect(guest.submitAndWait(Cache.contextCache(1)))
    #expect(host.take() == [.bind("a", .firstStage(Self.stage(8, 0x30_0000)))], "PASID 7 keeps its table")
  }

  // MARK: Sharing and invalidations

  @Test("functions share the table of a PASID, and PASIDs with the same root do not share one")
  func sharing() throws {
    let setup = try Setup()
    setup.start()
    setup.addOther()
    setup.set(7, 0x20_0000)
    setup.set(8, 0x20_0000)
    _ = setup.host.take()
    #expect(setup.guest.submitAndWait(Cache.pasidIOTLB(2, domain: 5, pasid: 7)))
    #expect(setup.host.take() == [.invalidate(Self.stage(7, 0x20_0000), [.all])])
    #expect(setup.guest.submitAndWait(Cache.iotlb(2, domain: 5)))
    #expect(
      setup.host.take() == [
        .invalidate(Self.stage(7, 0x20_0000), [.all]), .invalidate(Self.stage(8, 0x20_0000), [.all]),
      ])
  }

  @Test("each invalidation reaches the tables that it concerns, and no other")
  func granularities() throws {
    let setup = try Setup { $0.deviceIOTLB = true }
    setup.write(0, 0x20_0000)
    setup.start()
    setup.set(1, 0x30_0000)
    setup.set(2, 0x40_0000)
    setup.set(3, 0x50_0000, domain: 6)
    setup.addOther()
    // Only the first function has PASID 2 on this root; the other one has its own context entry without PASIDs.
    setup.guest.store(setup.guest.load(setup.tables.context + 0x100) & ~(1 << 3), at: setup.tables.context + 0x100)
    #expect(setup.guest.submitAndWait(Cache.contextCache(3, source: 0x20)))
    _ = setup.host.take()
    let tables: [GuestFirstStage] = [
      Bindings.stage(0x20_0000), Self.stage(1, 0x30_0000), Self.stage(2, 0x40_0000),
      Self.stage(3, 0x50_0000, domain: 6),
    ]
    let page = FirstStageInvalidation(address: 0x5000, pageCount: 1, leafOnly: false)
    let leaf = FirstStageInvalidation(address: 0x5000, pageCount: 1, leafOnly: true)
    func deviceTLB(_ source: RequesterID, pasid: UInt64) -> [UInt64] {
      [8 | UInt64(source.rawValue) << 16 | pasid << 32, 0x5000]
    }
    let cases: [([UInt64], [Int], FirstStageInvalidation)] = [
      (Cache.pasidIOTLB(3, domain: 5, pasid: 1, address: 0x5000), [1], page),
      (Cache.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x5000), [0], page),
      (Cache.pasidIOTLB(3, domain: 6, pasid: 1, address: 0x5000), [], page),
      (Cache.pasidIOTLB(2, domain: 5, pasid: 2), [2], .all), (Cache.pasidIOTLB(2, domain: 6, pasid: 3), [3], .all),
      (Cache.iotlb(2, domain: 5), [0, 1, 2], .all), (Cache.iotlb(2, domain: 6), [3], .all),
      (Cache.iotlb(3, domain: 6, address: 0x5000), [3], .all), (Cache.iotlb(1), [0, 1, 2, 3], .all),
      ([3 | UInt64(Bindings.source.rawValue) << 32, 0x5000], [0], leaf),
      (deviceTLB(Bindings.source, pasid: 2), [2], leaf), (deviceTLB(Bindings.source, pasid: 0), [0], leaf),
      (deviceTLB(Bindings.neighbour, pasid: 2), [], leaf), (deviceTLB(Bindings.neighbour, pasid: 0), [0], leaf),
      // The G bit: every PASID of the function.
      ([8 | UInt64(Bindings.source.rawValue) << 16, 0x5001], [0, 1, 2, 3], leaf),
    ]
    for (descriptor, expected, invalidation) in cases {
      #expect(setup.guest.submitAndWait(descriptor))
      #expect(setup.host.take() == expected.map { .invalidate(tables[$0], [invalidation]) }, "\(descriptor)")
    }
  }

  @Test("an unmap of a thousand pages under one PASID of 32 costs one call for a doorbell, to that PASID's table alone")
  func batching() throws {
    let setup = try Setup()
    setup.start()
    for pasid: UInt32 in 1...32 { setup.set(pasid, 0x20_0000 + UInt64(pasid) << 16) }
    _ = setup.host.take()
    let table = Self.stage(17, 0x20_0000 + 17 << 16)
    for page: UInt64 in 0..<1000 {
      setup.guest.put(Cache.pasidIOTLB(3, domain: 5, pasid: 17, address: page << 12))
    }
    #expect(setup.guest.submitAndWait())
    #expect(setup.host.take() == [.invalidate(table, [.all])], "more than 512 become one")
    for page: UInt64 in 0..<500 {
      setup.guest.put(Cache.pasidIOTLB(3, domain: 5, pasid: 17, address: page << 12))
    }
    #expect(setup.guest.submitAndWait())
    let events = setup.host.take()
    guard events.count == 1, case .invalidate(table, let all) = events[0] else {
      Issue.record("\(events.count) calls")
      return
    }
    #expect(all.count == 500)
    #expect(setup.bindings.counters.invalidationCalls == 2)
    // Pages of all PASIDs in one doorbell: one call for each table.
    for page: UInt64 in 0..<320 {
      setup.guest.put(Cache.pasidIOTLB(3, domain: 5, pasid: page % 32 + 1, address: page << 12))
    }
    #expect(setup.guest.submitAndWait())
    let calls = setup.host.take()
    #expect(calls.count == 32)
    for case .invalidate(let stage, let list) in calls {
      #expect(list.count == 10 && list.allSatisfy { $0.address >> 12 % 32 + 1 == UInt64(stage.pasid) })
    }
  }

  @Test("many global device-TLB invalidations cost one of all mappings for each table")
  func globalDeviceTLB() throws {
    let setup = try Setup { $0.deviceIOTLB = true }
    setup.write(0, 0x10_0000)
    setup.start()
    for pasid: UInt32 in 1...32 { setup.set(pasid, 0x20_0000 + UInt64(pasid) << 16) }
    _ = setup.host.take()
    for page: UInt64 in 0..<100 { setup.guest.put([8 | UInt64(Bindings.source.rawValue) << 16, page << 12 | 1]) }
    #expect(setup.guest.submitAndWait())
    let calls = setup.host.take()
    // Those of the 32 PASIDs, and of requests without PASID.
    #expect(calls.count == 33)
    for case .invalidate(_, let list) in calls { #expect(list == [.all]) }
  }

  @Test("an invalidation in the doorbell of a teardown reaches the table that another function still uses")
  func teardownWithInvalidation() throws {
    let setup = try Setup()
    setup.start()
    setup.addOther()
    setup.set(7, 0x20_0000)
    _ = setup.host.take()
    setup.guest.store(setup.guest.load(setup.tables.context) & ~(1 << 3), at: setup.tables.context)
    #expect(
      setup.guest.submitAndWait(
        Cache.contextCache(3, source: 0x18), Cache.pasidIOTLB(3, domain: 5, pasid: 7, address: 0x1000)))
    #expect(
      setup.host.take() == [
        .bindPASID("a", 7, .blocked(.entry(.pasidNotEnabled))),
        .invalidate(Self.stage(7, 0x20_0000), [.init(address: 0x1000, pageCount: 1, leafOnly: false)]),
      ])
  }

  // MARK: Refusals

  @Test("a refused PASID is blocked with a fault that names it, and the next invalidation of its entry tries again")
  func refusedBinding() throws {
    let setup = try Setup()
    setup.start()
    setup.set(6, 0x20_0000)
    setup.host.refusedPASIDs = [7]
    _ = setup.host.take()
    setup.set(7, 0x30_0000)
    let wanted = Self.bind(7, 0x30_0000)
    #expect(setup.host.take() == [wanted, .bindPASID("a", 7, .blocked(.refused))])
    let fault = try #require(setup.guest.takeFault())
    #expect(fault.reason == FaultReason.pasidEntryInvalid.rawValue && fault.source == Bindings.source.rawValue)
    #expect(fault.pasid == 7)
    #expect(setup.binding(6) == .firstStage(Self.stage(6, 0x20_0000)), "another PASID keeps its table")
    #expect(setup.guest.submitAndWait(Cache.pasidIOTLB(2, domain: 5, pasid: 7)))
    #expect(setup.host.take() == [], "the PASID has no table")
    setup.host.refusedPASIDs = []
    #expect(setup.guest.submitAndWait(Cache.pasidCache(3)))
    #expect(setup.host.take() == [wanted] && setup.guest.takeFault() == nil)

    // A refused replacement ends the former binding.
    setup.host.refusedPASIDs = [7]
    setup.write(7, 0x40_0000)
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(
      setup.host.take() == [
        Self.bind(7, 0x40_0000), .bindPASID("a", 7, .blocked(.refused)), .free(Self.stage(7, 0x30_0000)),
      ])
    // The entry goes although its binding was refused.
    setup.clear(7)
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(setup.host.take() == [.bindPASID("a", 7, Self.notPresent)] && setup.bound == [6])
  }

  @Test("a PASID that the host fails to detach keeps its table and its invalidations, and is detached later")
  func refusedDetachment() throws {
    let setup = try Setup()
    setup.start()
    setup.set(7, 0x20_0000)
    _ = setup.host.take()
    setup.host.undetachablePASIDs = [7]
    setup.clear(7)
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(setup.host.take() == [.bindPASID("a", 7, Self.notPresent)], "the table is not freed")
    #expect(setup.guest.takeFault()?.pasid == 7 && setup.binding(7) == .blocked(.refused))
    #expect(setup.guest.submitAndWait(Cache.pasidIOTLB(2, domain: 5, pasid: 7)))
    #expect(setup.host.take() == [.invalidate(Self.stage(7, 0x20_0000), [.all])])
    setup.host.undetachablePASIDs = []
    #expect(setup.guest.submitAndWait(Setup.selective(7, domain: 9 as UInt16)))
    #expect(setup.host.take() == [.bindPASID("a", 7, Self.notPresent), .free(Self.stage(7, 0x20_0000))])
    #expect(setup.bound == [])
  }

  @Test("if the host fails to invalidate the table of one PASID, only its users are blocked")
  func refusedInvalidation() throws {
    let setup = try Setup()
    setup.start()
    setup.addOther()
    setup.set(7, 0x20_0000)
    setup.set(8, 0x30_0000)
    _ = setup.host.take()
    setup.host.refusedInvalidations = [Self.stage(7, 0x20_0000)]
    #expect(setup.guest.submitAndWait(Cache.iotlb(1)))
    #expect(
      setup.host.take() == [
        .invalidate(Self.stage(7, 0x20_0000), [.all]), .bindPASID("a", 7, .blocked(.refused)),
        .bindPASID("b", 7, .blocked(.refused)), .invalidate(Self.stage(8, 0x30_0000), [.all]),
        .free(Self.stage(7, 0x20_0000)),
      ])
    #expect(setup.guest.takeFault()?.pasid == 7)
    #expect(setup.binding(8) == .firstStage(Self.stage(8, 0x30_0000)))
    setup.host.refusedInvalidations = []
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(setup.host.take() == [Self.bind(7, 0x20_0000), Self.bind(7, 0x20_0000, "b")])
  }

  @Test("an entry that would need shadowing is blocked with a fault, and replaced like any other")
  func guestSecondStage() throws {
    let setup = try Setup { $0.nested = true }
    setup.start()
    setup.write(7, Guest.pasidEntry(type: 2, secondStage: 0x30_0000))
    #expect(setup.guest.submitAndWait(Setup.selective(7)))
    #expect(setup.host.take() == [.bindPASID("a", 7, .blocked(.guestSecondStage))])
    #expect(setup.guest.takeFault()?.pasid == 7)
    setup.set(7, 0x20_0000)
    #expect(setup.host.take() == [Self.bind(7, 0x20_0000)])
  }

  @Test("renewing a function binds its PASIDs again")
  func renew() throws {
    let setup = try Setup()
    setup.start()
    setup.set(7, 0x20_0000)
    _ = setup.host.take()
    setup.bindings.renew(setup.function)
    #expect(setup.host.take() == [Self.bind(7, 0x20_0000), .bind("a", .secondStage)])
  }

  @Test("PASIDs are bound only while the function's PASID Enable is set")
  func pasidEnable() throws {
    let setup = try Setup()
    setup.write(7, 0x20_0000)
    setup.start()
    let (guest, host, bindings) = (setup.guest, setup.host, setup.bindings)
    bindings.setPASIDEnable(of: setup.function) { true }
    #expect(host.take() == [], "it was set already")
    bindings.setPASIDEnable(of: setup.function) { false }
    let off = Event.bindPASID("a", 7, .blocked(.entry(.pasidNotEnabled)))
    #expect(host.take() == [off, .free(Self.stage(7, 0x20_0000))])
    #expect(guest.submitAndWait(Setup.selective(7), Cache.pasidCache(3), Cache.contextCache(1)))
    #expect(host.take() == [] && setup.bound == [])
    setup.write(8, 0x30_0000)
    bindings.setPASIDEnable(of: setup.function) { true }
    #expect(host.take() == [Self.bind(7, 0x20_0000), Self.bind(8, 0x30_0000)])

    // A PASID that cannot be detached is detached by the next invalidation, although its entry is present.
    host.undetachablePASIDs = [7]
    bindings.setPASIDEnable(of: setup.function) { false }
    #expect(setup.bound == [7] && guest.takeFault()?.pasid == 7)
    host.undetachablePASIDs = []
    _ = host.take()
    #expect(guest.submitAndWait(Setup.selective(7)))
    #expect(host.take() == [off, .free(Self.stage(7, 0x20_0000))])

    bindings.add(setup.other, for: Requester(id: Bindings.neighbour), pasidEnable: false)
    #expect(host.take() == [.bind("b", .secondStage)])
    bindings.setPASIDEnable(of: setup.other) { true }
    #expect(host.take() == [Self.bind(7, 0x20_0000, "b"), Self.bind(8, 0x30_0000, "b")])
    bindings.remove(setup.other)
    bindings.setPASIDEnable(of: setup.other) { false }
    #expect(Set(host.take()) == [.free(Self.stage(7, 0x20_0000)), .free(Self.stage(8, 0x30_0000))])
  }

  // MARK: Hostile guests

  @Test("a function has at most 512 PASIDs, the guest learns of the others by a fault, and room is used again")
  func limit() throws {
    let setup = try Setup()
    let limit = UInt32(PASIDLimit.bound)
    for pasid in 1...limit + 100 { setup.write(pasid, 0x20_0000) }
    setup.start()
    #expect(setup.bound == Array(1...limit) && setup.bindings.counters.refusals == 1)
    #expect(setup.guest.takeFault()?.pasid == limit + 1)
    #expect(setup.guest.submitAndWait(Setup.selective(limit + 50)))
    #expect(setup.host.take() == [.bindPASID("a", limit + 50, .blocked(.tooManyPASIDs))])
    #expect(setup.guest.takeFault()?.pasid == limit + 50)
    // A PASID that goes makes room for one that comes in the same doorbell.
    setup.clear(5)
    #expect(setup.guest.submitAndWait(Setup.selective(limit + 50), Setup.selective(5)))
    #expect(setup.bound == (1...limit).filter { $0 != 5 } + [limit + 50])
    #expect(setup.guest.takeFault() == nil)
  }

  /// All directory entries point to one PASID table, in which every entry is present.
  @Test("the largest possible tables are walked within bounds, and PASIDs beyond them are bound when they are named")
  func largestTables() throws {
    let setup = try Setup()
    let (empty, full) = (setup.guest.page(), setup.guest.page())
    for index: UInt64 in 0..<1 << 14 {
      setup.guest.store((index < 1 << 13 ? empty : full) | 1, at: setup.directory + index * 8)
    }
    for entry: UInt64 in 0..<64 {
      let words = Bindings.entry(0x20_0000)
      setup.guest.store(words.1, at: full + entry * 64 + 8)
      setup.guest.store(words.2, at: full + entry * 64 + 16)
      setup.guest.store(words.0, at: full + entry * 64)
    }
    setup.start()
    #expect(setup.bound == [], "the walk ends in the empty tables")
    #expect(setup.guest.submitAndWait(Setup.selective(0xf_fff0)))
    #expect(setup.bound == [0xf_fff0])
    for index: UInt64 in 0..<1 << 13 { setup.guest.store(full | 1, at: setup.directory + index * 8) }
    #expect(setup.guest.submitAndWait(Cache.pasidCache(3), Cache.contextCache(1), Cache.pasidCache(0, domain: 5)))
    #expect(setup.bound.count == PASIDLimit.bound)
    #expect(setup.guest.submitAndWait(Cache.pasidIOTLB(2, domain: 5, pasid: 3)))
  }

  @Test("root tables, directories and entries of any content bind or block, and never trap")
  func anyTables() throws {
    var random = SeededGenerator(seed: 0x7061_7369)
    for _ in 0..<300 {
      let setup = try Setup(width: .random(in: 0...20, using: &random)) {
        $0.nested = Bool.random(using: &random)
        $0.pasidBits = .random(in: 0...20, using: &random)
      }
      for pasid: UInt32 in 1..<4 { setup.write(pasid, 0x20_0000) }
      setup.start()
      // The unit and the bindings hold each other.
      defer { setup.bindings.remove(setup.function) }
      var isDone = false
      for _ in 0..<8 {
        let places = [
          setup.tables.rootHalf, setup.tables.context, setup.tables.context + 8, setup.directory, setup.directory + 8,
        ]
        if let place = places.randomElement(using: &random), Bool.random(using: &random) {
          setup.guest.store(
            UInt64.random(in: 0 ... .max, using: &random) & (Bool.random(using: &random) ? 0x7f_ffff : .max) | 1,
            at: place)
        }
        let table = setup.guest.load(setup.directory) & 0x7f_f000
        for word: UInt64 in 0..<3 where Bool.random(using: &random) {
          setup.guest.store(
            .random(in: 0 ... .max, using: &random) & 0xff_ffff,
            at: table + .random(in: 0..<64, using: &random) * 64 + word * 8)
        }
        let pasid = UInt32.random(in: 0..<1 << 20, using: &random) & (Bool.random(using: &random) ? 0xf : 0xf_ffff)
        isDone = setup.guest.submitAndWait(
          Setup.selective(pasid), Bool.random(using: &random) ? Cache.pasidCache(3) : Cache.contextCache(1),
          Cache.pasidIOTLB(2, domain: 5, pasid: UInt64(pasid)))
      }
      // The queue itself may be broken. If not, each binding is what an emulated function's request would use.
      guard isDone else { continue }
      for (pasid, binding) in setup.bindings.boundFunctions.first?.pasids ?? [] where binding == .secondStage {
        #expect(setup.guest.port(Bindings.source, pasid: pasid).answer(0x5000) == .at(0x5000, 8))
      }
    }
  }
}
