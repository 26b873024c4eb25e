import Hardware
import Testing
import VTdOracle

@testable import VTd

/// Tests which calls the unit makes to the host when the guest changes tables and registers.
@Suite("host bindings")
struct HostBindingTests {
  typealias Cache = CacheTests
  typealias Event = RecordingHost.Event

  static let source = RequesterID(bus: 0, device: 3, function: 0)
  /// Uses the same tables as `source`: its context entry is a copy.
  static let neighbour = RequesterID(bus: 0, device: 4, function: 0)

  struct Setup {
    let guest: Guest
    let host = RecordingHost()
    let bindings: HostBindings
    let tables: Guest.ScalableTables
    let function: RecordingHost.Function
    let other: RecordingHost.Function

    /// Sets up tables of two functions with PASID 0 and domain 5, both present. Translation is off, and no function is
    /// added.
    init(_ words: (UInt64, UInt64, UInt64), _ options: (inout UnitOptions) -> Void = { _ in }) throws {
      guest = try Guest.firstStage {
        $0.cachingMode = true
        options(&$0)
      }
      tables = guest.scalableTables(source: source, words: words)
      for word: UInt64 in 0..<4 {
        guest.store(guest.load(tables.context + word * 8), at: tables.context + 0x100 + word * 8)
      }
      guest.enableQueue(wide: true, pages: 4)
      bindings = HostBindings(unit: guest.unit)
      function = RecordingHost.Function("a", host)
      other = RecordingHost.Function("b", host)
    }

    func add() { bindings.add(function, for: Requester(id: source)) }
    func addOther() { bindings.add(other, for: Requester(id: neighbour)) }
    func enable() {
      guest.setRootTable(tables.root, scalable: true)
      guest.enableTranslation()
    }

    /// Writes the PASID-table entry of PASID 0. The word with P is last.
    func write(_ words: (UInt64, UInt64, UInt64)) {
      guest.store(words.1, at: tables.entry + 8)
      guest.store(words.2, at: tables.entry + 16)
      guest.store(words.0, at: tables.entry)
    }
  }

  static func stage(_ root: UInt64, domain: UInt16 = 5, pasid: UInt32 = 0) -> GuestFirstStage {
    GuestFirstStage(root: root, levels: 4, domain: domain, pasid: pasid)
  }
  static func entry(_ root: UInt64, domain: UInt16 = 5) -> (UInt64, UInt64, UInt64) {
    Guest.pasidEntry(type: 1, domain: domain, firstStage: root)
  }
  static let passThrough = Guest.pasidEntry(type: 4)

  @Test("each change of tables or mode binds the function again and then frees the old table")
  func transitions() throws {
    let setup = try Setup(Self.passThrough)
    let (guest, host) = (setup.guest, setup.host)
    setup.add()
    #expect(host.take() == [.bind("a", .secondStage)])
    setup.enable()
    // Pass-through is the same binding, so nothing changes.
    #expect(host.take() == [])

    setup.write(Self.entry(0x20_0000))
    #expect(host.take() == [], "an entry is not read again until it is invalidated")
    #expect(guest.submitAndWait(Cache.pasidCache(1, domain: 5)))
    #expect(host.take() == [.bind("a", .firstStage(Self.stage(0x20_0000)))])

    setup.write(Self.entry(0x30_0000, domain: 6))
    #expect(guest.submitAndWait(Cache.pasidCache(0, domain: 5)))
    #expect(
      host.take() == [.bind("a", .firstStage(Self.stage(0x30_0000, domain: 6))), .free(Self.stage(0x20_0000))])

    guest.command(clear: 31)
    #expect(host.take() == [.bind("a", .secondStage), .free(Self.stage(0x30_0000, domain: 6))])
    #expect(setup.bindings.binding(of: setup.function) == .secondStage)
    #expect(guest.takeFault() == nil)
  }

  @Test("the entry's flags, levels, domain and PASID reach the host")
  func fields() throws {
    let setup = try Setup(
      Guest.pasidEntry(type: 1, domain: 0x1234, firstStage: 0x20_0000, third: 1 << 7 | 1 << 4 | 1 << 2 | 1)
    ) {
      $0.nested = true
      $0.addressWidth = 57
    }
    setup.enable()
    setup.add()
    var stage = Self.stage(0x20_0000, domain: 0x1234)
    stage.levels = 5
    stage.supervisorRequestEnable = true
    stage.writeProtectEnable = true
    stage.extendedAccessedFlagEnable = true
    #expect(setup.host.take() == [.bind("a", .firstStage(stage))])
    #expect(stage.addressWidth == 57 && Self.stage(0).addressWidth == 48)
  }

  @Test("requests without PASID use the entry of RID_PASID")
  func ridPASID() throws {
    let setup = try Setup(Self.entry(0x20_0000)) { $0.nested = true }
    let guest = setup.guest
    guest.store(7, at: setup.tables.context + 8)
    setup.write(Self.passThrough)
    let seventh = setup.tables.entry + 7 * 64
    for (word, value) in [0x41, 9, 0x50_0000].enumerated() {
      guest.store(UInt64(value), at: seventh + UInt64(word) * 8)
    }
    setup.enable()
    setup.add()
    #expect(setup.host.take() == [.bind("a", .firstStage(Self.stage(0x50_0000, domain: 9, pasid: 7)))])
    #expect(guest.submitAndWait(Cache.pasidIOTLB(2, domain: 9, pasid: 0), Cache.pasidIOTLB(2, domain: 5, pasid: 7)))
    #expect(setup.host.take() == [])
    #expect(guest.submitAndWait(Cache.pasidIOTLB(2, domain: 9, pasid: 7)))
    #expect(setup.host.take().count == 1)
  }

  // MARK: Which invalidations reread

  @Test("only an invalidation that covers an entry makes the unit read it again")
  func granularities() throws {
    let covering: [[UInt64]] = [
      Cache.contextCache(1), Cache.contextCache(2, domain: 1), Cache.contextCache(3, source: 0x18),
      Cache.contextCache(3, source: 0x19, mask: 3), Cache.pasidCache(3), Cache.pasidCache(0, domain: 5),
      Cache.pasidCache(1, domain: 5),
    ]
    let others: [[UInt64]] = [
      Cache.contextCache(3, source: 0x20), Cache.contextCache(3, source: 0x19), Cache.pasidCache(0, domain: 6),
      Cache.pasidCache(1, domain: 6), Cache.iotlb(1), Cache.iotlb(2, domain: 5),
      Cache.pasidIOTLB(2, domain: 5, pasid: 0), [4, 0],
    ]
    for descriptor in covering {
      let setup = try Setup(Self.entry(0x20_0000))
      setup.enable()
      setup.add()
      setup.write(Self.entry(0x30_0000))
      _ = setup.host.take()
      for other in others { #expect(setup.guest.submitAndWait(other)) }
      #expect(!setup.host.take().contains { if case .bind = $0 { true } else { false } })
      #expect(setup.guest.submitAndWait(descriptor))
      #expect(
        setup.host.take() == [.bind("a", .firstStage(Self.stage(0x30_0000))), .free(Self.stage(0x20_0000))],
        "\(descriptor)")
      #expect(setup.guest.submitAndWait(descriptor))
      #expect(setup.host.take() == [], "an unchanged entry is not bound again")
    }
  }

  @Test("an entry that becomes present is bound by an invalidation of its new domain")
  func becomesPresent() throws {
    let setup = try Setup((0, 0, 0))
    setup.enable()
    setup.add()
    #expect(setup.host.take() == [.bind("a", .blocked(.entry(.pasidEntryNotPresent)))])
    setup.write(Self.entry(0x20_0000, domain: 77))
    #expect(setup.guest.submitAndWait(Cache.pasidCache(1, domain: 77)))
    #expect(setup.host.take() == [.bind("a", .firstStage(Self.stage(0x20_0000, domain: 77)))])
    // No request faulted, so no fault is recorded.
    #expect(setup.guest.takeFault() == nil)
  }

  @Test("legacy pass-through uses the host's second stage, and a guest's second stage is blocked with a fault")
  func legacy() throws {
    let guest = try Guest { $0.cachingMode = true }
    let host = RecordingHost()
    let bindings = HostBindings(unit: guest.unit)
    let function = RecordingHost.Function("a", host)
    let tables = guest.legacyTables(source: Self.source, secondStage: 0x20_0000, type: 2)
    guest.setRootTable(tables.root, scalable: false)
    guest.enableTranslation()
    bindings.add(function, for: Requester(id: Self.source))
    #expect(host.take() == [.bind("a", .secondStage)])
    guest.store(0x20_0000 | 1, at: tables.context)
    guest.write64(0x28, 1 << 63 | 1 << 61)
    #expect(host.take() == [.bind("a", .blocked(.guestSecondStage))])
    let fault = try #require(guest.takeFault())
    #expect(fault.reason == FaultReason.contextEntryInvalid.rawValue && fault.source == Self.source.rawValue)
  }

  @Test("an entry that would need shadowing is blocked, with a fault", arguments: [2, 3] as [UInt64])
  func guestSecondStage(type: UInt64) throws {
    let setup = try Setup(Guest.pasidEntry(type: type, firstStage: 0x20_0000, secondStage: 0x30_0000)) {
      $0.nested = true
    }
    setup.enable()
    setup.add()
    #expect(setup.host.take() == [.bind("a", .blocked(.guestSecondStage))])
    let fault = try #require(setup.guest.takeFault())
    #expect(fault.reason == FaultReason.pasidEntryInvalid.rawValue)
  }

  @Test("supervisor privilege without PASID is blocked")
  func ridPrivilege() throws {
    let setup = try Setup(Guest.pasidEntry(type: 1, firstStage: 0x20_0000, third: 1)) { $0.nested = true }
    setup.guest.store(1 << 20, at: setup.tables.context + 8)
    setup.enable()
    setup.add()
    #expect(setup.host.take() == [.bind("a", .blocked(.supervisorRequests))])
    #expect(setup.guest.takeFault()?.reason == FaultReason.pasidEntryInvalid.rawValue)
  }

  // MARK: First-stage invalidations

  @Test("one doorbell with a thousand descriptors causes one call, in the guest's order")
  func batching() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.enable()
    setup.add()
    _ = setup.host.take()
    var descriptors: [[UInt64]] = []
    for page: UInt64 in 0..<500 {
      descriptors.append(Cache.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x10_0000_0000 - page << 13, mask: page & 1))
      descriptors.append(Cache.pasidIOTLB(3, domain: 6, pasid: 0, address: page << 12))
    }
    for descriptor in descriptors { setup.guest.put(descriptor) }
    #expect(setup.guest.submitAndWait())
    let events = setup.host.take()
    guard events.count == 1, case .invalidate(Self.stage(0x20_0000), let all) = events[0] else {
      Issue.record("\(events.count) calls")
      return
    }
    #expect(all.count == 500)
    #expect(all[0] == FirstStageInvalidation(address: 0x10_0000_0000, pageCount: 1, leafOnly: false))
    #expect(all[1] == FirstStageInvalidation(address: 0xf_ffff_e000, pageCount: 2, leafOnly: false))
    #expect(setup.bindings.counters.invalidationCalls == 1)

    // Beyond the limit of single pages, the call has one invalidation of everything.
    for page: UInt64 in 0..<1000 { setup.guest.put(Cache.pasidIOTLB(3, domain: 5, pasid: 0, address: page << 12)) }
    #expect(setup.guest.submitAndWait())
    #expect(setup.host.take() == [.invalidate(Self.stage(0x20_0000), [.all])])
  }

  @Test("each granularity reaches the host")
  func invalidations() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.enable()
    setup.add()
    _ = setup.host.take()
    let cases: [([UInt64], [FirstStageInvalidation])] = [
      (Cache.pasidIOTLB(2, domain: 5, pasid: 0), [.all]),
      (Cache.iotlb(1), [.all]), (Cache.iotlb(2, domain: 5), [.all]),
      (
        Cache.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x1234_5000),
        [.init(address: 0x1234_5000, pageCount: 1, leafOnly: false)]
      ),
      (
        Cache.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x1234_5000, mask: 9 | 1 << 6),
        [.init(address: 0x1220_0000, pageCount: 512, leafOnly: true)]
      ),
      (
        Cache.pasidIOTLB(3, domain: 5, pasid: 0, address: 0xffff_ffff_ffff_f000),
        [.init(address: 0xffff_ffff_ffff_f000, pageCount: 1, leafOnly: false)]
      ),
      (Cache.pasidIOTLB(3, domain: 5, pasid: 0, address: 0xffff_ffff_ffff_f000, mask: 63), [.all]),
      (Cache.iotlb(2, domain: 6), []), (Cache.pasidIOTLB(2, domain: 5, pasid: 1), []),
      (Cache.iotlb(3, domain: 6, address: 0x1234_5000), []), (Cache.iotlb(3, domain: 5, address: 0x1234_5000), [.all]),
    ]
    for (descriptor, expected) in cases {
      #expect(setup.guest.submitAndWait(descriptor))
      #expect(
        setup.host.take() == (expected.isEmpty ? [] : [.invalidate(Self.stage(0x20_0000), expected)]), "\(descriptor)")
    }
    // Without a first stage, the host has nothing to invalidate.
    setup.write(Self.passThrough)
    #expect(setup.guest.submitAndWait(Cache.pasidCache(3), Cache.iotlb(1)))
    #expect(setup.host.take() == [.bind("a", .secondStage), .free(Self.stage(0x20_0000))])
  }

  @Test("a device-TLB invalidation reaches the host's table, unless an IOTLB invalidation has just covered it")
  func deviceTLB() throws {
    let setup = try Setup(Self.entry(0x20_0000)) {
      $0.deviceIOTLB = true
      $0.pasidBits = 20
    }
    setup.enable()
    setup.add()
    setup.addOther()
    _ = setup.host.take()
    let (guest, host) = (setup.guest, setup.host)
    func deviceTLB(_ source: RequesterID, _ address: UInt64) -> [UInt64] {
      [3 | UInt64(source.rawValue) << 32, address]
    }
    func deviceTLB(_ source: RequesterID, pasid: UInt64, _ address: UInt64) -> [UInt64] {
      [8 | UInt64(source.rawValue) << 16 | pasid << 32, address]
    }
    func pages(_ address: UInt64, mask: UInt64 = 0) -> [UInt64] { [6 | 3 << 4 | 5 << 16, address | mask] }
    func page(_ address: UInt64, _ count: UInt64 = 1) -> FirstStageInvalidation {
      FirstStageInvalidation(address: address, pageCount: count, leafOnly: true)
    }
    func sends(_ descriptors: [UInt64]..., asks wanted: [FirstStageInvalidation]?, _ name: Comment) {
      for descriptor in descriptors { guest.put(descriptor) }
      #expect(guest.submitAndWait())
      #expect(host.take() == (wanted.map { [.invalidate(Self.stage(0x20_0000), $0)] } ?? []), name)
    }
    sends(deviceTLB(Self.source, 0x5000), asks: [page(0x5000)], "a single page")
    sends(deviceTLB(Self.neighbour, pasid: 0, 0x5000), asks: [page(0x5000)], "of the other function, by PASID")
    // The lowest zero bit from 12 up gives the size: 16 KiB.
    sends(deviceTLB(Self.source, 0x4000 | 0x1000 | 1), asks: [page(0x4000, 4)], "a range")
    sends(deviceTLB(Self.source, 0x7fff_ffff_ffff_f001), asks: [.all], "all")
    sends(deviceTLB(Self.source, pasid: 3, 0x5000), asks: nil, "of another PASID")
    sends([8 | UInt64(Self.source.rawValue) << 16, 0x5001], asks: [page(0x5000)], "of every PASID")
    sends(deviceTLB(RequesterID(rawValue: 0x99), 0x5000), asks: nil, "of another function")
    let unit = FirstStageInvalidation(address: 0x4000, pageCount: 4, leafOnly: false)
    sends(
      pages(0x4000, mask: 2), deviceTLB(Self.source, 0x5000), deviceTLB(Self.neighbour, 0x4000 | 0x1000 | 1),
      asks: [unit], "within the unit's range")
    sends(pages(0x4000, mask: 2), deviceTLB(Self.source, 0x8000), asks: [unit, page(0x8000)], "beyond that range")
    sends(
      deviceTLB(Self.source, 0x5000), pages(0x4000, mask: 2), asks: [page(0x5000), unit], "before the unit's")
    #expect(setup.bindings.counters.invalidationCalls == 8)
  }

  @Test("renewing an added function binds it again, and renewing any other function does nothing")
  func renew() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.enable()
    setup.add()
    _ = setup.host.take()
    setup.bindings.renew(setup.other)
    #expect(setup.host.take() == [])
    setup.bindings.renew(setup.function)
    #expect(setup.host.take().contains(.bind("a", .firstStage(Self.stage(0x20_0000)))))
    #expect(setup.bindings.binding(of: setup.function) == .firstStage(Self.stage(0x20_0000)))
  }

  @Test("functions in one domain share a table and its calls, and the table is freed with the last of them")
  func sharing() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.enable()
    setup.add()
    setup.addOther()
    let shared = HostBinding.firstStage(Self.stage(0x20_0000))
    #expect(setup.host.take() == [.bind("a", shared), .bind("b", shared)])
    #expect(setup.guest.submitAndWait(Cache.pasidIOTLB(2, domain: 5, pasid: 0)))
    #expect(setup.host.take() == [.invalidate(Self.stage(0x20_0000), [.all])])

    // The first function is blocked. The invalidation in the same doorbell reaches the table that the other still uses.
    setup.guest.store(0, at: setup.tables.context)
    #expect(
      setup.guest.submitAndWait(
        Cache.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x1000), Cache.contextCache(3, source: 0x18)))
    #expect(
      setup.host.take() == [
        .bind("a", .blocked(.entry(.scalableContextEntryNotPresent))),
        .invalidate(Self.stage(0x20_0000), [.init(address: 0x1000, pageCount: 1, leafOnly: false)]),
      ])
    setup.guest.store(0, at: setup.tables.context + 0x100)
    #expect(setup.guest.submitAndWait(Cache.contextCache(3, source: 0x20)))
    #expect(
      setup.host.take() == [
        .bind("b", .blocked(.entry(.scalableContextEntryNotPresent))), .free(Self.stage(0x20_0000)),
      ])
  }

  // MARK: Refusals, reset, unplug

  @Test("a refused binding blocks the function with a fault, and the next invalidation tries again")
  func refusedBinding() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.add()
    _ = setup.host.take()
    setup.host.refusesBindings = true
    setup.enable()
    let wanted = Event.bind("a", .firstStage(Self.stage(0x20_0000)))
    #expect(setup.host.take() == [wanted, .bind("a", .blocked(.refused))])
    let fault = try #require(setup.guest.takeFault())
    #expect(fault.reason == FaultReason.pasidEntryInvalid.rawValue && fault.source == Self.source.rawValue)
    #expect(fault.pasid == nil)
    #expect(setup.bindings.counters.refusals == 1)

    #expect(setup.guest.submitAndWait(Cache.pasidIOTLB(2, domain: 5, pasid: 0)))
    #expect(setup.host.take() == [], "the function has no table")
    setup.host.refusesBindings = false
    #expect(setup.guest.submitAndWait(Cache.pasidCache(1, domain: 5)))
    #expect(setup.host.take() == [wanted])
    #expect(setup.guest.takeFault() == nil)
  }

  @Test("a fault that the entry suppresses is not recorded")
  func suppressed() throws {
    let setup = try Setup(Guest.pasidEntry(type: 1, firstStage: 0x20_0000, first: 2))
    setup.add()
    setup.host.refusesBindings = true
    setup.enable()
    #expect(setup.bindings.counters.refusals == 1)
    #expect(setup.guest.takeFault() == nil)
  }

  @Test("if the host fails to invalidate, all functions on the table are blocked")
  func refusedInvalidation() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.enable()
    setup.add()
    setup.addOther()
    _ = setup.host.take()
    setup.host.refusesInvalidations = true
    #expect(setup.guest.submitAndWait(Cache.iotlb(1)))
    #expect(
      setup.host.take() == [
        .invalidate(Self.stage(0x20_0000), [.all]), .bind("a", .blocked(.refused)), .bind("b", .blocked(.refused)),
        .free(Self.stage(0x20_0000)),
      ])
    #expect(setup.guest.takeFault() != nil)
  }

  @Test("a reset binds functions to guest physical memory again")
  func reset() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.enable()
    setup.add()
    _ = setup.host.take()
    setup.guest.unit.reset()
    #expect(setup.host.take() == [.bind("a", .secondStage), .free(Self.stage(0x20_0000))])
  }

  @Test("a removed function gets no more calls")
  func remove() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.enable()
    setup.add()
    setup.addOther()
    _ = setup.host.take()
    setup.bindings.remove(setup.function)
    #expect(setup.host.take() == [], "the other function keeps the table")
    setup.guest.command(clear: 31)
    #expect(setup.host.take() == [.bind("b", .secondStage), .free(Self.stage(0x20_0000))])
    setup.bindings.remove(setup.other)
    setup.guest.enableTranslation()
    #expect(setup.host.take() == [])
    #expect(setup.bindings.binding(of: setup.function) == nil)
  }

  @Test("the unit records a fault that the host reports as its own")
  func hostFault() throws {
    let setup = try Setup(Self.entry(0x20_0000))
    setup.enable()
    setup.guest.unit.recordHostFault(
      HostFault(
        reason: .firstStageEntryNotPresent, source: Self.source, pasid: 3, address: 0x1234_5678, isRead: true))
    let fault = try #require(setup.guest.takeFault())
    #expect(fault.reason == 0x71 && fault.source == 0x18 && fault.address == 0x1234_5000 && fault.isRead)
    #expect(fault.pasid == 3)
  }

  @Test("root tables and entries of any content bind or block, and never trap")
  func anyTables() throws {
    var random = SeededGenerator(seed: 0x6e65_7374)
    for _ in 0..<300 {
      let setup = try Setup(Self.entry(0x20_0000)) {
        $0.nested = Bool.random(using: &random)
        $0.pasidBits = 20
      }
      setup.add()
      // The unit and the bindings hold each other.
      defer { setup.bindings.remove(setup.function) }
      for place in [setup.tables.rootHalf, setup.tables.context, setup.tables.context + 8, setup.tables.directory]
      where Int.random(in: 0..<4, using: &random) == 0 {
        setup.guest.store(
          UInt64.random(in: 0 ... .max, using: &random) & (Bool.random(using: &random) ? 0x7f_ffff : .max) | 1,
          at: place)
      }
      setup.write(
        (
          .random(in: 0 ... .max, using: &random) & 0xff_ffff | 1, .random(in: 0 ... .max, using: &random) & 0xffff,
          .random(in: 0 ... .max, using: &random)
        ))
      setup.enable()
      #expect(setup.guest.submitAndWait(Cache.pasidCache(3), Cache.iotlb(1)))
      let held = try #require(setup.bindings.binding(of: setup.function))
      // An emulated function gets the same result from the same entries.
      if held == .secondStage {
        #expect(setup.guest.port(Self.source).answer(0x5000) == .at(0x5000, 8))
      }
      if case .blocked(.entry) = held {
        #expect(setup.guest.port(Self.source).answer(0x5000) == .refused(.translation))
      }
    }
  }
}
