import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import VTd

/// A remote IOTLB loses what the guest invalidates before the guest sees the completion.
@Suite("invalidations of remote IOTLBs", .timeLimit(.minutes(5)))
struct RemoteInvalidationTests {
  let source = RequesterID(rawValue: 0x18)
  static let input: UInt64 = 0x1_0000_0000
  /// A page that is not joined with the one at `input`.
  static let other: UInt64 = 0x1_0000_8000

  enum Mode: CaseIterable { case legacy, second, first, nested, passThrough }

  /// Sets up domain 5 with two pages, which the remote holds.
  private func started(_ mode: Mode) throws -> (Guest, KeepingRemote, root: UInt64, slot: UInt64) {
    let guest = try Guest {
      $0.scalableMode = mode != .legacy
      $0.firstStage = mode == .first || mode == .nested
      $0.nested = mode == .nested
    }
    let first = guest.page()
    let second = guest.page()
    for (page, output): (UInt64, UInt64) in [(Self.input, 0x20_0000), (Self.other, 0x30_0000)] {
      guest.map(page, in: first, levels: 4, entry: output | 0x67, tableBits: 0x27)
      if mode != .nested { guest.map(page, in: second, levels: 4, entry: output | 3, tableBits: 3) }
    }
    // In nested translation the second stage is the identity, in large pages.
    if mode == .nested {
      for page: UInt64 in 0..<4 {
        guest.map(page << 21, in: second, levels: 4, entry: page << 21 | 0x83, atLevel: 2, tableBits: 3)
      }
    }
    let root: UInt64
    if mode == .legacy {
      root = guest.legacyTables(source: source, secondStage: second, domain: 5).root
    } else {
      let type: UInt64 =
        switch mode {
        case .second: 2
        case .nested: 3
        case .passThrough: 4
        default: 1
        }
      let snoop: UInt64 = mode == .nested ? 1 << 23 : 0
      root =
        guest.scalableTables(
          source: source,
          words: Guest.pasidEntry(
            type: type, firstStage: type & 1 == 1 ? first : 0, secondStage: type & 2 == 2 ? second : 0, second: snoop)
        ).root
    }
    guest.setRootTable(root, scalable: mode != .legacy)
    guest.enableQueue(wide: mode != .legacy)
    guest.enableTranslation()
    let remote = guest.remote(source)
    fill(remote)
    let table = mode == .legacy || mode == .second ? second : first
    return (guest, remote, root, guest.slot(of: Self.input, in: table, levels: 4))
  }

  private func fill(_ remote: KeepingRemote) {
    #expect(remote.answer(Self.input) != .refused(.translation))
    #expect(remote.answer(Self.other) != .refused(.translation))
    remote.forgetCalls()
  }

  /// The part of the two pages that the remote still holds: 0, 1 or 2 pages.
  private func kept(_ remote: KeepingRemote) -> Int {
    [Self.input, Self.other].count { remote.hit($0, .read) != nil }
  }

  // MARK: Granularities

  private typealias Case = (descriptor: [UInt64], kept: [Mode: Int])

  /// The descriptors that legacy mode has, too. Modes that are not named keep nothing.
  private static let descriptors: [Case] = [
    (CacheTests.contextCache(1), [:]),
    (CacheTests.contextCache(2, domain: 9), [.legacy: 2]),
    (CacheTests.contextCache(2, domain: 5), [:]),
    (CacheTests.contextCache(3, source: 0x18), [:]),
    (CacheTests.contextCache(3, source: 0x1a, mask: 2), [:]),
    (CacheTests.iotlb(1), [:]),
    (CacheTests.iotlb(2, domain: 5), [:]),
    (CacheTests.iotlb(3, domain: 5, address: input), [.legacy: 1, .second: 1]),
    (CacheTests.iotlb(3, domain: 5, address: input, mask: 4), [:]),
    (CacheTests.iotlb(3, domain: 5, address: 0x5000), [.legacy: 2, .second: 2]),
  ]
  private static let pasidDescriptors: [Case] = [
    (CacheTests.pasidCache(3), [:]),
    (CacheTests.pasidCache(0, domain: 5), [:]),
    (CacheTests.pasidCache(1, domain: 5), [:]),
    (CacheTests.pasidIOTLB(2, domain: 5, pasid: 0), [.second: 2]),
    (CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: input), [.second: 2, .first: 1, .nested: 1]),
  ]

  @Test("each invalidation takes at least what it selects", arguments: Mode.allCases)
  func granularities(_ mode: Mode) throws {
    let (guest, remote, _, _) = try started(mode)
    for (descriptor, expected) in Self.descriptors + (mode == .legacy ? [] : Self.pasidDescriptors) {
      #expect(guest.submitAndWait(descriptor))
      #expect(kept(remote) == expected[mode] ?? 0, "0x\(String(descriptor[0], radix: 16)), \(descriptor[1])")
      fill(remote)
    }
  }

  @Test("a remote receives no invalidation of another domain, PASID or device", arguments: Mode.allCases)
  func foreign(_ mode: Mode) throws {
    let (guest, remote, _, _) = try started(mode)
    var descriptors = [
      CacheTests.contextCache(3, source: 0x20), CacheTests.iotlb(2, domain: 6),
      CacheTests.iotlb(3, domain: 6, address: Self.input), [4, 0],
    ]
    if mode != .legacy {
      descriptors += [
        CacheTests.pasidCache(0, domain: 6), CacheTests.pasidCache(1, domain: 5, pasid: 1),
        CacheTests.pasidIOTLB(2, domain: 5, pasid: 1), CacheTests.pasidIOTLB(2, domain: 6, pasid: 0),
        CacheTests.pasidIOTLB(3, domain: 6, pasid: 0, address: Self.input),
        CacheTests.pasidIOTLB(3, domain: 5, pasid: 1, address: Self.input),
      ]
    }
    for descriptor in descriptors {
      #expect(guest.submitAndWait(descriptor))
      #expect(remote.calls.isEmpty && kept(remote) == 2, "0x\(String(descriptor[0], radix: 16))")
    }
  }

  @Test("in legacy mode the registers invalidate as descriptors do")
  func registers() throws {
    let (guest, remote, _, _) = try started(.legacy)
    let commands: [(register: Int, value: UInt64, kept: Int)] = [
      // Context command: global, domains 5 and 6, the device.
      (0x28, 0xa000_0000_0000_0000, 0), (0x28, 0xc000_0000_0000_0005, 0), (0x28, 0xc000_0000_0000_0006, 2),
      (0x28, 0xe000_0000_0018_0000, 0),
      // IOTLB: global, domains 5 and 6, the page in IVA.
      (0xf8, 0x9000_0000_0000_0000, 0), (0xf8, 0xa000_0005_0000_0000, 0), (0xf8, 0xa000_0006_0000_0000, 2),
      (0xf8, 0xb000_0005_0000_0000, 1),
    ]
    guest.write64(0xf0, Self.input)
    for command in commands {
      guest.write64(command.register, command.value)
      #expect(guest.read64(command.register) >> 63 == 0)
      #expect(kept(remote) == command.kept, "0x\(String(command.value, radix: 16))")
      fill(remote)
    }
  }

  @Test("a remote that holds nothing receives nothing, and one with a page receives each invalidation once")
  func nothingHeld() throws {
    let (guest, remote, _, _) = try started(.first)
    #expect(guest.submitAndWait(CacheTests.iotlb(1), CacheTests.contextCache(1)))
    #expect(remote.ranges == [.all])
    #expect(guest.submitAndWait(CacheTests.iotlb(1)))
    #expect(remote.calls.count == 1)
  }

  @Test("adjacent ranges go out as one, and more than 16 as all addresses")
  func manyRanges() throws {
    func pages(_ numbers: [UInt64]) -> [[UInt64]] {
      numbers.map { CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: $0 << 12) }
    }
    func submit(_ guest: Guest, _ numbers: [UInt64]) {
      for descriptor in pages(numbers) { guest.put(descriptor) }
      #expect(guest.submitAndWait())
    }
    let (guest, remote, _, _) = try started(.first)
    submit(guest, [3, 4, 5, 9, 8])
    #expect(
      remote.ranges == [
        DMARange(first: 0x3000, last: 0x5fff), DMARange(first: 0x9000, last: 0x9fff),
        DMARange(first: 0x8000, last: 0x8fff),
      ])
    #expect(remote.calls.count == 1)
    submit(guest, (0..<16).map { $0 * 2 })
    #expect(remote.calls.last?.ranges.count == 16)
    #expect(kept(remote) == 2)
    submit(guest, (0..<17).map { $0 * 2 })
    #expect(remote.calls.last?.ranges == [.all])
  }

  @Test("mappings of an earlier domain or source ID are lost with the next invalidation of any kind")
  func mixed() throws {
    let (guest, remote, _, _) = try started(.first)
    let entry = try #require(guest.unit.snapshot(of: [source]).sources.first?.pasids.first?.entry.address)
    // Software changes the domain without an invalidation, and the remote asks for another page.
    guest.store(6, at: entry + 8)
    _ = try remote.miss(Self.input)
    #expect(guest.submitAndWait(CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: 0x5000)))
    #expect(kept(remote) == 0)

    let requester = Requester(id: source, busMasterEnable: true)
    let moved = KeepingRemote()
    moved.connect(to: guest.unit, for: requester)
    fill(moved)
    requester.id = RequesterID(rawValue: 0x20)
    #expect(guest.submitAndWait(CacheTests.pasidIOTLB(3, domain: 9, pasid: 0, address: 0x5000)))
    #expect(kept(moved) == 0)
  }

  // MARK: Order

  @Test("software sees no completion of a wait, a register or a global command before the remote is invalidated")
  func order() throws {
    for mode in [Mode.legacy, .first] {
      let (guest, remote, root, _) = try started(mode)
      let seen = Notes<[UInt64]>()
      let shared = Shared(guest)
      remote.onInvalidate {
        let guest = shared.guest
        seen.add([
          UInt64(guest.memory.loadUInt32(at: guest.statusPage) ?? 9), guest.read64(0x28) >> 63,
          guest.read64(0xf8) >> 63, UInt64(guest.status >> 30),
        ])
      }
      #expect(guest.submitAndWait(CacheTests.iotlb(1)))
      #expect(seen.all.last == [0, 0, 0, 3])
      fill(remote)
      if mode == .legacy {
        guest.write64(0x28, 1 << 63 | 1 << 61)
        #expect(seen.all.last == [1, 1, 0, 3])
        fill(remote)
        guest.write64(0xf8, 1 << 63 | 1 << 60)
        #expect(seen.all.last == [1, 0, 1, 3])
        fill(remote)
      }
      guest.command(clear: 31)
      #expect(seen.all.last == [1, 0, 0, 3] && guest.status >> 31 == 0)
      fill(remote)
      guest.command(set: 31)
      #expect(seen.all.last == [1, 0, 0, 1] && guest.status >> 31 == 1)
      fill(remote)
      guest.setRootTable(root, scalable: mode != .legacy)
      #expect(seen.all.last == [1, 0, 0, 2] && guest.status >> 30 == 3)
      fill(remote)
      let count = seen.all.count
      guest.unit.reset()
      #expect(seen.all.count == count + 1 && remote.held.isEmpty)
    }
  }

  @Test("translation disabled, enabled and a new root table each take the remote's mappings", arguments: [false, true])
  func modeChanges(isLegacy: Bool) throws {
    let (guest, remote, root, _) = try started(isLegacy ? .legacy : .first)
    guest.command(clear: 31)
    #expect(remote.held.isEmpty)
    #expect(remote.answer(Self.input) == .at(Self.input, 8))
    guest.command(set: 31)
    #expect(remote.held.isEmpty)
    #expect(remote.answer(Self.input) == .at(0x20_0000, 8))
    guest.setRootTable(root, scalable: !isLegacy)
    #expect(remote.held.isEmpty)
  }

  // MARK: Races

  @Test("an invalidation waits for a miss that is being installed, and then takes it")
  func installInProgress() throws {
    let (guest, remote, _, slot) = try started(.first)
    #expect(guest.submitAndWait(CacheTests.iotlb(1)))
    let entered = TestSemaphore()
    let mayLeave = TestSemaphore()
    remote.onInstall {
      entered.signal()
      mayLeave.wait()
    }
    let miss = TestThread { _ = try? remote.miss(Self.input) }
    entered.wait()
    remote.forgetCalls()
    guest.store(0, at: slot)
    let shared = Shared(guest)
    let invalidation = TestThread {
      #expect(shared.guest.submitAndWait(CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: Self.input)))
    }
    guest.parking.waitForSleeper()
    #expect(remote.calls.isEmpty)
    #expect(guest.memory.loadUInt32(at: guest.statusPage) == 1)
    mayLeave.signal()
    miss.join()
    invalidation.join()
    remote.onInstall(nil)
    #expect(remote.held.isEmpty)
    #expect(remote.answer(Self.input) == .refused(.translation))
  }

  @Test("a miss that reads the old tables during an invalidation is lost with it")
  func walkInProgress() throws {
    let memory = HookedMemory(size: Guest.memorySize)
    let guest = try Guest.firstStage(memory: memory)
    let table = guest.page()
    guest.map(Self.input, in: table, levels: 4, entry: 0x20_0067, tableBits: 0x27)
    guest.start(source, scalable: Guest.pasidEntry(type: 1, firstStage: table))
    guest.enableQueue(wide: true)
    let remote = guest.remote(source)
    let slot = guest.slot(of: Self.input, in: table, levels: 4)
    let entered = TestSemaphore()
    let mayLeave = TestSemaphore()
    let isFirst = SharedInteger()
    // The walk has stopped before it reads the next page's entry, so it has read the page's own.
    memory.onLoad(at: slot + 8) {
      guard isFirst.value == 0 else { return }
      isFirst.increment()
      entered.signal()
      mayLeave.wait()
    }
    let miss = TestThread { _ = try? remote.miss(Self.input) }
    entered.wait()
    guest.store(0x30_0067, at: slot)
    let shared = Shared(guest)
    let invalidation = TestThread {
      #expect(shared.guest.submitAndWait(CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: Self.input)))
    }
    mayLeave.signal()
    miss.join()
    invalidation.join()
    #expect(remote.answer(Self.input) == .at(0x30_0000, 8))
  }

  @Test("after each wait no access of a busy remote goes to the old page")
  func twoThreads() throws {
    let (guest, remote, _, slot) = try started(.first)
    let stop = SharedInteger()
    let wrong = SharedInteger()
    let misses = TestThread {
      while stop.value == 0 {
        _ = remote.answer(Self.input)
        _ = try? remote.miss(Self.input, .write)
      }
    }
    for round: UInt64 in 1...2000 {
      let output = 0x20_0000 + (round % 64) << 12
      guest.store(output | 0x67, at: slot)
      _ = guest.submitAndWait(
        round % 3 == 0 ? CacheTests.iotlb(1) : CacheTests.pasidIOTLB(3, domain: 5, pasid: 0, address: Self.input))
      for mapping in remote.held where mapping.range.contains(Self.input) && mapping.physicalAddress != output {
        wrong.increment()
      }
      if remote.answer(Self.input) != .at(output, 8) { wrong.increment() }
    }
    stop.increment()
    misses.join()
    #expect(wrong.value == 0)
  }

  // MARK: The owner

  @Test("forgetAll takes everything, and waits for misses in flight")
  func forgetAll() throws {
    let (_, remote, _, _) = try started(.first)
    remote.port?.forgetAll()
    #expect(remote.ranges == [.all] && remote.held.isEmpty)
    remote.port?.forgetAll()
    #expect(remote.calls.count == 1)
    fill(remote)
    #expect(kept(remote) == 2)
  }

  @Test("a disconnected remote gets no mapping and no invalidation")
  func disconnected() throws {
    let (guest, remote, _, _) = try started(.first)
    let misses = guest.unit.counters[.remoteMisses]
    remote.port?.disconnect()
    #expect(remote.port?.isConnected == false)
    #expect(throws: DMAError.disabled) { try remote.miss(Self.input) }
    #expect(guest.submitAndWait(CacheTests.iotlb(1)))
    #expect(remote.calls.isEmpty)
    #expect(misses == 2 && guest.unit.counters[.remoteMisses] == misses)
    #expect(guest.unit.snapshot(of: []).remotes.isEmpty)
  }

  @Test("the snapshot and the counters show what a remote may hold")
  func inspection() throws {
    for (mode, contents): (Mode, RemoteCache.Contents) in [
      (.first, .domain(5, pasid: 0, isPassThrough: false)), (.passThrough, .domain(5, pasid: 0, isPassThrough: true)),
    ] {
      let (guest, remote, _, _) = try started(mode)
      let misses: UInt64 = mode == .first ? 2 : 1
      let shown = try #require(guest.unit.snapshot(of: []).remotes.first)
      #expect(shown.source == source && shown.contents == contents && shown.misses == misses)
      #expect(shown.mappings == misses && shown.invalidations == 0)
      #expect(guest.submitAndWait(CacheTests.iotlb(1)))
      let after = try #require(guest.unit.snapshot(of: []).remotes.first)
      #expect(after.contents == .empty && after.invalidations == 1)
      #expect(guest.unit.counters[.remoteInvalidations] == 1)
      guest.command(clear: 31)
      _ = try remote.miss(0x1000)
      #expect(guest.unit.snapshot(of: []).remotes.first?.contents == .untranslated)
    }
  }
}
