import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import VTd

/// The misses of remote IOTLBs: the range, the rights, the accessed and dirty bits, and the faults.
@Suite("misses of remote IOTLBs")
struct RemoteMissTests {
  let source = RequesterID(rawValue: 0x18)
  static let beforeInterrupts: UInt64 = 0xfedf_ffff
  static let afterInterrupts: UInt64 = 0xfef0_0000

  private func mapping(
    _ range: ClosedRange<UInt64>, _ output: UInt64, _ rights: DMAAccess = [.read, .write]
  ) -> RemoteMapping {
    RemoteMapping(
      range: DMARange(first: range.lowerBound, last: range.upperBound), physicalAddress: output,
      isReadable: rights.contains(.read), isWritable: rights.contains(.write))
  }

  /// A guest whose first stage is ready for entries.
  private func firstStage(
    levels: UInt64 = 4, _ change: (inout UnitOptions) -> Void = { _ in }
  ) throws -> (Guest, KeepingRemote, table: UInt64) {
    let guest = try Guest.firstStage(change)
    let table = guest.page()
    guest.start(source, scalable: Guest.pasidEntry(type: 1, firstStage: table, third: levels == 5 ? 4 : 0))
    return (guest, guest.remote(source), table)
  }

  private func map(_ guest: Guest, _ input: UInt64, _ table: UInt64, _ entry: UInt64, level: Int = 1, levels: Int = 4) {
    guest.map(input, in: table, levels: levels, entry: entry, atLevel: level, tableBits: Guest.firstStageTable)
  }

  // MARK: Without paging tables

  @Test("while translation is disabled, a miss gets all addresses up to the interrupt address range")
  func disabled() throws {
    let guest = try Guest()
    let remote = guest.remote(source)
    #expect(try remote.miss(0x1234_5678) == mapping(0...Self.beforeInterrupts, 0))
    #expect(try remote.miss(0, .write) == mapping(0...Self.beforeInterrupts, 0))
    let above = mapping(Self.afterInterrupts ... .max, Self.afterInterrupts)
    #expect(try remote.miss(Self.afterInterrupts) == above)
    #expect(try remote.miss(.max, [.read, .write]) == above)
  }

  @Test("pass-through gets all addresses of the host's width, and a miss beyond is a fault", arguments: [false, true])
  func passThrough(isLegacy: Bool) throws {
    let guest = try Guest { $0.scalableMode = !isLegacy }
    if isLegacy {
      guest.setRootTable(guest.legacyTables(source: source, secondStage: 0, type: 2).root, scalable: false)
      guest.enableTranslation()
    } else {
      guest.start(source, scalable: Guest.pasidEntry(type: 4))
    }
    let remote = guest.remote(source)
    #expect(try remote.miss(0x5000) == mapping(0...Self.beforeInterrupts, 0))
    let last: UInt64 = (1 << 48) - 1
    #expect(try remote.miss(last) == mapping(Self.afterInterrupts...last, Self.afterInterrupts))
    #expect(throws: DMAError.translation) { try remote.miss(1 << 48) }
    let fault = try #require(guest.takeFault())
    #expect(fault.reason == (isLegacy ? 0x04 : 0x83) && fault.source == 0x18 && fault.address == 1 << 48)
  }

  @Test("the interrupt address range has no mapping in any mode, and no fault record")
  func interruptAddresses() throws {
    let (guest, remote, table) = try firstStage()
    map(guest, 0xfee0_0000, table, 0x5067)
    let requester = Requester(id: source, busMasterEnable: true)
    let untranslated = try Guest()
    let other = KeepingRemote()
    other.connect(to: untranslated.unit, for: requester)
    for address: UInt64 in [0xfee0_0000, 0xfeef_ffff] {
      #expect(throws: DMAError.notMemory) { try remote.miss(address, .write) }
      #expect(throws: DMAError.notMemory) { try other.miss(address) }
      #expect(requester.takeMasterAbort())
    }
    #expect(guest.takeFault() == nil)
    // Tables that lead there are a fault, as for other requests.
    map(guest, 0x8000, table, 0xfee0_0067)
    #expect(throws: DMAError.translation) { try remote.miss(0x8000) }
    #expect(guest.takeFault()?.reason == 0x87)
  }

  @Test("with Bus Master Enable clear a miss fails, and no fault is recorded")
  func busMasterEnable() throws {
    let (guest, _, _) = try firstStage()
    let remote = KeepingRemote()
    remote.connect(to: guest.unit, for: Requester(id: source))
    #expect(throws: DMAError.disabled) { try remote.miss(0x1000) }
    #expect(guest.takeFault() == nil)
    #expect(guest.unit.counters[.remoteMisses] == 0)
  }

  // MARK: Rights and dirty bits

  @Test("second-stage rights are exact", arguments: [false, true])
  func secondStageRights(isLegacy: Bool) throws {
    let guest = try Guest { $0.scalableMode = !isLegacy }
    let table = guest.page()
    for (page, rights): (UInt64, UInt64) in [(1, 1), (3, 2), (5, 3)] {
      guest.map(page << 12, in: table, levels: 4, entry: 0x5000 | rights, tableBits: 3)
    }
    if isLegacy {
      guest.setRootTable(guest.legacyTables(source: source, secondStage: table).root, scalable: false)
      guest.enableTranslation()
    } else {
      guest.start(source, scalable: Guest.pasidEntry(type: 2, secondStage: table))
    }
    let remote = guest.remote(source)
    #expect(try remote.miss(0x1234) == mapping(0x1000...0x1fff, 0x5000, .read))
    #expect(try remote.miss(0x3234, .write) == mapping(0x3000...0x3fff, 0x5000, .write))
    #expect(try remote.miss(0x5fff, [.read, .write]) == mapping(0x5000...0x5fff, 0x5000))
    for (address, access, legacy, scalable): (UInt64, DMAAccess, UInt8, UInt8) in [
      (0x1000, .write, 0x05, 0x85), (0x3000, .read, 0x06, 0x86), (0x1000, [.read, .write], 0x05, 0x85),
      (0x7000, .read, 0x06, 0x79),
    ] {
      #expect(throws: DMAError.translation) { try remote.miss(address, access) }
      let fault = try #require(guest.takeFault())
      #expect(fault.reason == (isLegacy ? legacy : scalable))
      #expect(fault.isRead == !access.contains(.write) && fault.address == address)
    }
  }

  @Test("a read miss leaves a clean first-stage page clean and grants no write; a write miss sets A and D")
  func firstStageDirty() throws {
    let (guest, remote, table) = try firstStage()
    map(guest, 0x4000, table, 0x7007)
    let slot = guest.slot(of: 0x4000, in: table, levels: 4)
    #expect(try remote.miss(0x4000) == mapping(0x4000...0x4fff, 0x7000, .read))
    #expect(guest.load(slot) == 0x7027)
    #expect(try remote.miss(0x4000, .write) == mapping(0x4000...0x4fff, 0x7000))
    #expect(guest.load(slot) == 0x7067)
    #expect(try remote.miss(0x4000) == mapping(0x4000...0x4fff, 0x7000))
  }

  @Test("a remote that never asks again to write gets a writable page at its read miss, which sets D")
  func neverAsksAgain() throws {
    let (guest, _, table) = try firstStage()
    let remote = guest.remote(source, asksAgainToWrite: false)
    map(guest, 0x4000, table, 0x7007)
    map(guest, 0x6000, table, 0x9005)
    #expect(try remote.miss(0x4000) == mapping(0x4000...0x4fff, 0x7000))
    #expect(guest.load(guest.slot(of: 0x4000, in: table, levels: 4)) == 0x7067)
    // A page without write permission stays clean, and is no fault.
    #expect(try remote.miss(0x6000) == mapping(0x6000...0x6fff, 0x9000, .read))
    #expect(guest.load(guest.slot(of: 0x6000, in: table, levels: 4)) == 0x9025)
    #expect(guest.takeFault() == nil)
  }

  /// - Parameters:
  ///   - first, second: the low bits of the stages' leaves.
  ///   - marks: SSADE.
  private func nested(
    first: UInt64 = 0x67, second: UInt64 = 0x303, marks: Bool = true, asksAgainToWrite: Bool = true
  ) throws -> (Guest, KeepingRemote, first: UInt64, second: UInt64) {
    let guest = try Guest.nested()
    let root = guest.page()
    let top = guest.page()
    guest.map(0x4000, in: top, levels: 4, entry: 0x9000 | first, tableBits: Guest.firstStageTable)
    for page in stride(from: 0, to: guest.page(), by: 0x1000) where page >= 0x10_0000 {
      guest.map(page, in: root, levels: 4, entry: page | 0x303, tableBits: 0x103)
    }
    guest.map(0x9000, in: root, levels: 4, entry: 0xb000 | second, tableBits: 0x103)
    guest.start(
      source,
      scalable: Guest.pasidEntry(
        type: 3, firstStage: top, secondStage: root, first: marks ? 1 << 9 : 0, second: 1 << 23))
    return (
      guest, guest.remote(source, asksAgainToWrite: asksAgainToWrite),
      guest.slot(of: 0x4000, in: top, levels: 4), guest.slot(of: 0x9000, in: root, levels: 4)
    )
  }

  @Test("nested translation grants write only if each stage that tracks it is dirty")
  func nestedDirty() throws {
    for (first, second, marks, rights): (UInt64, UInt64, Bool, DMAAccess) in [
      (0x67, 0x303, true, [.read, .write]), (0x27, 0x303, true, .read), (0x67, 0x103, true, .read),
      (0x67, 0x003, false, [.read, .write]), (0x27, 0x003, false, .read), (0x67, 0x001, false, .read),
    ] {
      let (guest, remote, firstSlot, secondSlot) = try nested(first: first, second: second, marks: marks)
      #expect(try remote.miss(0x4008) == mapping(0x4000...0x4fff, 0xb000, rights))
      #expect(guest.load(firstSlot) == 0x9000 | first)
      #expect(guest.load(secondSlot) == 0xb000 | second)
      guard second & 2 != 0 else { continue }
      #expect(try remote.miss(0x4008, .write) == mapping(0x4000...0x4fff, 0xb000))
      #expect(guest.load(firstSlot) == 0x9067)
      #expect(guest.load(secondSlot) == (marks ? 0xb303 : 0xb003))
    }
  }

  @Test("in nested translation, a remote that never asks again gets both stages dirty")
  func nestedNeverAsksAgain() throws {
    let (guest, remote, first, second) = try nested(first: 0x27, second: 0x103, asksAgainToWrite: false)
    #expect(try remote.miss(0x4000) == mapping(0x4000...0x4fff, 0xb000))
    #expect(guest.load(first) == 0x9067 && guest.load(second) == 0xb303)
  }

  // MARK: Ranges

  @Test("a large page is one mapping of its whole size")
  func largePages() throws {
    let (guest, remote, table) = try firstStage()
    map(guest, 0x4020_0000, table, 0x60_00e7, level: 2)
    map(guest, 0x8000_0000, table, 0x4000_00e7, level: 3)
    #expect(try remote.miss(0x4023_4567) == mapping(0x4020_0000...0x403f_ffff, 0x60_0000))
    #expect(try remote.miss(0xbfff_ffff) == mapping(0x8000_0000...0xbfff_ffff, 0x4000_0000))
  }

  @Test("a large page that overlaps the interrupt address range is mapped in pieces outside of the range")
  func largePageAtInterrupts() throws {
    let (guest, remote, table) = try firstStage()
    map(guest, 0xfee0_0000, table, 0x60_00e7, level: 2)
    map(guest, 0x20_0000, table, 0xfee0_00e7, level: 2)
    #expect(try remote.miss(0xfef0_0000) == mapping(0xfef0_0000...0xfef3_ffff, 0x70_0000))
    #expect(try remote.miss(0x30_0123) == mapping(0x30_0000...0x33_ffff, 0xfef0_0000))
    #expect(throws: DMAError.translation) { try remote.miss(0x20_0000) }
  }

  @Test("in nested translation a mapping covers what both stages map contiguously")
  func nestedRange() throws {
    let (guest, remote, _, _) = try nested()
    let entry = guest.load(guest.unit.snapshot(of: [source]).rootTable) & ~0xfff
    let pasid = guest.load(guest.load(entry + 0x18 * 32) & ~0xfff) & ~0xfff
    let second = guest.load(pasid) & ~0xfff
    let first = guest.load(pasid + 16) & ~0xfff
    // 2 MiB in the first stage over 4 KiB pages: 100 contiguous ones from 0x20_0000, then another place.
    let upper = guest.slot(of: 0x40_0000, in: first, levels: 4, level: 2, tableBits: Guest.firstStageTable)
    guest.store(0x20_00e7, at: upper)
    for page in UInt64(0)..<100 {
      guest.map(0x20_0000 + page << 12, in: second, levels: 4, entry: 0x50_0303 + page << 12, tableBits: 0x103)
    }
    guest.map(0x26_4000, in: second, levels: 4, entry: 0x70_0303, tableBits: 0x103)
    // The first stage's new table page is in the second stage, too.
    for page in stride(from: 0x10_0000, to: guest.page(), by: 0x1000) {
      guest.map(page, in: second, levels: 4, entry: page | 0x303, tableBits: 0x103)
    }
    #expect(try remote.miss(0x40_1008) == mapping(0x40_0000...0x43_ffff, 0x50_0000))
    #expect(try remote.miss(0x44_0000) == mapping(0x44_0000...0x46_3fff, 0x54_0000))
    #expect(try remote.miss(0x46_4000) == mapping(0x46_4000...0x46_4fff, 0x70_0000))
  }

  @Test("neighbours are joined if they are contiguous, with the same rights, and accessed before")
  func neighbours() throws {
    let (guest, remote, table) = try firstStage()
    for (page, entry): (UInt64, UInt64) in [
      // The last entry of each group does not continue it: not accessed, clean, not writable, elsewhere, not present.
      (0x10, 0x10_0067), (0x11, 0x10_1067), (0x12, 0x10_2067), (0x13, 0x10_3047),
      (0x20, 0x20_0067), (0x21, 0x20_1027),
      (0x30, 0x30_0067), (0x31, 0x30_1065),
      (0x40, 0x40_0067), (0x41, 0x40_2067),
      (0x50, 0x50_0067), (0x51, 0x50_1066),
    ] {
      map(guest, page << 12, table, entry)
    }
    #expect(try remote.miss(0x1_1ffc) == mapping(0x1_0000...0x1_2fff, 0x10_0000))
    #expect(guest.load(guest.slot(of: 0x1_3000, in: table, levels: 4)) == 0x10_3047)
    #expect(try remote.miss(0x1_3000) == mapping(0x1_0000...0x1_3fff, 0x10_0000))
    for page: UInt64 in [0x20, 0x30, 0x40, 0x50] {
      #expect(try remote.miss(page << 12) == mapping(page << 12...page << 12 | 0xfff, page << 16))
    }
    #expect(try remote.miss(0x2_1000) == mapping(0x2_1000...0x2_1fff, 0x20_1000, .read))
  }

  @Test func `a clean page is not joined to a read-only one for a remote that never asks again to write`() throws {
    let (guest, _, table) = try firstStage()
    let remote = guest.remote(source, asksAgainToWrite: false)
    // Read-only, read-only, clean, and read-only again.
    for (page, entry): (UInt64, UInt64) in [
      (0x10, 0x10_0025), (0x11, 0x10_1025), (0x12, 0x10_2027), (0x13, 0x10_3025),
    ] {
      map(guest, page << 12, table, entry)
    }
    #expect(try remote.miss(0x1_0000) == mapping(0x1_0000...0x1_1fff, 0x10_0000, .read))
    #expect(guest.load(guest.slot(of: 0x1_2000, in: table, levels: 4)) == 0x10_2027)
    #expect(try remote.miss(0x1_2000) == mapping(0x1_2000...0x1_2fff, 0x10_2000))
    let other = guest.remote(source)
    guest.store(0x10_2027, at: guest.slot(of: 0x1_2000, in: table, levels: 4))
    #expect(try other.miss(0x1_0000) == mapping(0x1_0000...0x1_3fff, 0x10_0000, .read))
  }

  @Test("neighbours are joined within an aligned range of 64 pages, also in the second stage")
  func neighboursLimit() throws {
    let guest = try Guest.scalable()
    let table = guest.page()
    for page: UInt64 in 0..<512 {
      guest.map(page << 12, in: table, levels: 4, entry: 0x60_0003 + page << 12, tableBits: 3)
    }
    guest.start(source, scalable: Guest.pasidEntry(type: 2, secondStage: table))
    let remote = guest.remote(source)
    #expect(try remote.miss(0x5_4321) == mapping(0x4_0000...0x7_ffff, 0x64_0000))
  }

  // MARK: Hostile addresses

  @Test("addresses at both ends of the address space are translated or faults, as for other requests")
  func edges() throws {
    let (guest, remote, table) = try firstStage()
    map(guest, 0, table, 0x5067)
    map(guest, 0xffff_ffff_ffff_f000, table, 0x7067)
    #expect(try remote.miss(0) == mapping(0...0xfff, 0x5000))
    #expect(try remote.miss(.max) == mapping(0xffff_ffff_ffff_f000 ... .max, 0x7000))
    for address: UInt64 in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
      #expect(throws: DMAError.translation) { try remote.miss(address) }
      #expect(guest.takeFault()?.reason == 0x80)
    }
    let second = try Guest.scalable()
    second.start(source, scalable: Guest.pasidEntry(type: 2, secondStage: second.page()))
    #expect(throws: DMAError.translation) { try second.remote(source).miss(.max, .write) }
    #expect(second.takeFault()?.reason == 0x83)
  }

  // MARK: Faults

  @Test("each fault is recorded as for a request of the function, and FPD suppresses it")
  func faults() throws {
    for change in 0..<12 {
      let (guest, remote, table) = try firstStage()
      map(guest, 0x4000, table, 0x7065)
      let entries = guest.unit.snapshot(of: [source]).sources
      let context = try #require(entries.first?.context)
      let pasid = try #require(entries.first?.pasids.first)
      switch change {
      case 0: guest.store(0, at: try #require(entries.first?.root.address))
      case 1: guest.store(0, at: context.address)
      case 2: guest.store(2, at: context.address)
      case 3: guest.store(guest.load(context.address) | 0x100, at: context.address)
      case 4: guest.store(0, at: pasid.directory.address)
      case 5: guest.store(2, at: pasid.directory.address)
      case 6: guest.store(0, at: pasid.entry.address)
      case 7: guest.store(guest.load(pasid.entry.address) | 2, at: pasid.entry.address)
      case 8: guest.store(guest.load(pasid.entry.address) | 0x20, at: pasid.entry.address)
      case 9: guest.store(Guest.pasidEntry(type: 5).0, at: pasid.entry.address)
      case 10: guest.store(0x7061, at: guest.slot(of: 0x4000, in: table, levels: 4))
      default: break
      }
      let port = guest.port(source)
      for (address, access): (UInt64, DMAAccess) in [(0x4008, .write), (0x5010, .read)] {
        #expect(port.answer(address, access) == .refused(.translation), "change \(change)")
        let expected = guest.takeFault()
        #expect(throws: DMAError.translation, "change \(change)") { try remote.miss(address, access) }
        let actual = guest.takeFault()
        #expect(
          actual?.reason == expected?.reason && actual?.source == expected?.source
            && actual?.address == expected?.address && actual?.isRead == expected?.isRead
            && actual?.pasid == expected?.pasid, "change \(change): \(String(describing: actual))")
        #expect((expected == nil) == [2, 5, 7].contains(change), "change \(change)")
      }
      #expect(guest.unit.counters[.faults] == 4)
    }
  }

  @Test func `a miss that may be out of date is refused without a fault`() throws {
    let (guest, remote, table) = try firstStage()
    map(guest, 0x4000, table, 0x7067)
    #expect(throws: DMAError.translation) { try remote.miss(0x5000, recordsFault: false) }
    #expect(throws: DMAError.notMemory) { try remote.miss(0xfee0_0000, recordsFault: false) }
    #expect(guest.takeFault() == nil && guest.unit.counters[.faults] == 0)
    #expect(try remote.miss(0x4000, recordsFault: false) == mapping(0x4000...0x4fff, 0x7000))
  }
}
