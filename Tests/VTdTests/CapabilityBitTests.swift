import Hardware
import Testing
import VTdOracle

@testable import VTd

/// Each bit of CAP and ECAP (VT-d 11.4.2, 11.4.3). If a unit sets a bit, its feature works. If the bit is clear,
/// software cannot use the feature.
@Suite("capability bits")
struct CapabilityBitTests {
  static let source = RequesterID(bus: 0, device: 3, function: 0)
  static let input: UInt64 = 0x1_2345_6000

  /// A unit with one combination of options.
  struct Unit: Sendable, CustomTestStringConvertible {
    let testDescription: String
    let options: UnitOptions

    init(_ name: String, _ change: (inout UnitOptions) -> Void) {
      testDescription = name
      var options = UnitOptions()
      change(&options)
      self.options = options
    }

    func guest() throws -> Guest { try Guest { $0 = options } }
    var capabilities: Capabilities { Capabilities(options) }
    func cap(_ bit: Int) -> Bool { capabilities.capability[bit: bit] }
    func ecap(_ bit: Int) -> Bool { capabilities.extended[bit: bit] }
  }

  static let units: [Unit] = [
    Unit("legacy") { _ in },
    Unit("legacy, 39 bits, nothing optional") {
      $0.addressWidth = 39
      $0.interruptRemapping = false
      $0.passThrough = false
      $0.dmaDrain = false
    },
    Unit("legacy, everything") {
      $0.addressWidth = 57
      $0.deviceIOTLB = true
      $0.snoopControl = true
      $0.cachingMode = true
    },
    Unit("legacy, no address width") { $0.dmaTranslation = false },
    Unit("second stage") {
      $0.scalableMode = true
      $0.extendedInterruptMode = false
    },
    Unit("second stage, PASIDs") {
      $0.scalableMode = true
      $0.pasidBits = 8
      $0.deviceIOTLB = true
    },
    Unit("first stage") {
      $0.scalableMode = true
      $0.firstStage = true
      $0.fs1gp = false
      $0.passThrough = false
    },
    Unit("first stage, everything") {
      $0.scalableMode = true
      $0.firstStage = true
      $0.addressWidth = 57
      $0.deviceIOTLB = true
      $0.pasidBits = 20
      $0.svm = true
      $0.cachingMode = true
    },
    Unit("nested") {
      $0.scalableMode = true
      $0.firstStage = true
      $0.nested = true
    },
    Unit("nested, everything") {
      $0.scalableMode = true
      $0.firstStage = true
      $0.nested = true
      $0.deviceIOTLB = true
      $0.snoopControl = true
      $0.pasidBits = 16
      $0.svm = true
    },
  ]

  // MARK: A request behind tables that use one bit

  /// The context entry and the PASID-table entry of PASID 0.
  struct Entries {
    var words: (UInt64, UInt64, UInt64)
    var contextLow: UInt64 = 0
    var contextHigh: UInt64 = 0
    /// The PASID whose entry is used.
    var pasid: UInt32 = 0
  }

  struct Scalable {
    let guest: Guest
    let tables: Guest.ScalableTables
    /// The root of the stage that requests use first.
    let root: UInt64
    let second: UInt64

    var leaf: UInt64 { guest.slot(of: CapabilityBitTests.input, in: root, levels: 4) }

    /// Returns the fault reason; nil if the request passes.
    func reason(_ access: DMAAccess = .read, pasid: UInt32? = nil) -> UInt8? {
      if case .at = guest.port(CapabilityBitTests.source, pasid: pasid).answer(CapabilityBitTests.input, access) {
        return nil
      }
      return guest.takeFault()?.reason ?? 0
    }
  }

  /// Sets up scalable mode with the first stage if the unit has one, else with the second. `input` is mapped to
  /// 0x20_0000.
  /// - Parameter tableBits: Bits of the first stage's table entries, by default with the accessed bit.
  private func scalable(
    _ unit: Unit, tableBits: UInt64 = 0x27, leafBits: UInt64 = 0x67, _ edit: (inout Entries) -> Void = { _ in }
  ) throws -> Scalable {
    let guest = try unit.guest()
    let first = guest.page()
    let second = guest.page()
    guest.map(Self.input, in: first, levels: 4, entry: 0x20_0000 | leafBits, tableBits: tableBits)
    // The second stage maps the tables to their own addresses, and `input` as the first stage does.
    for page: UInt64 in 0..<0x400 { guest.map(page << 12, in: second, levels: 4, entry: page << 12 | 3, tableBits: 3) }
    guest.map(Self.input, in: second, levels: 4, entry: 0x20_0003, tableBits: 3)
    var entries = Entries(
      words: unit.options.firstStage
        ? Guest.pasidEntry(type: 1, firstStage: first, secondStage: second)
        : Guest.pasidEntry(type: 2, secondStage: second))
    edit(&entries)
    let tables = guest.scalableTables(source: Self.source, words: entries.words)
    // A directory for all PASIDs: 16384 entries.
    let directory = guest.page(count: 32)
    let table = guest.load(tables.directory)
    guest.store(table, at: directory)
    guest.store(table, at: directory + UInt64(entries.pasid >> 6) * 8)
    guest.store(directory | 1 | entries.contextLow | 7 << 9, at: tables.context)
    for (word, value) in [entries.words.0, entries.words.1, entries.words.2].enumerated() {
      guest.store(value, at: tables.entry + UInt64(entries.pasid % 64) * 64 + UInt64(word) * 8)
    }
    guest.store(entries.contextHigh, at: tables.context + 8)
    guest.setRootTable(tables.root, scalable: true)
    guest.enableTranslation()
    return Scalable(
      guest: guest, tables: tables, root: unit.options.firstStage ? first : second, second: second)
  }

  /// Returns whether a request passes in scalable mode.
  private func passes(
    _ unit: Unit, _ access: DMAAccess = .read, pasid: UInt32? = nil, _ edit: (inout Entries) -> Void
  ) throws -> Bool {
    guard unit.options.scalableMode else { return false }
    return try scalable(unit, edit).reason(access, pasid: pasid) == nil
  }

  /// Returns the fault reason of a request in legacy mode; nil if it passes.
  private func legacy(
    _ unit: Unit, type: UInt64 = 0, width: UInt64? = nil, address: UInt64 = 0x5000, leaf: UInt64 = 0x20_0003,
    level: Int = 1
  ) throws -> UInt8? {
    let guest = try unit.guest()
    let levels = Int(width ?? (unit.options.addressWidth >= 48 ? 2 : 1)) + 2
    let table = guest.page()
    guest.map(address, in: table, levels: levels, entry: leaf, atLevel: level, tableBits: 3)
    let tables = guest.legacyTables(
      source: Self.source, secondStage: table, type: type, addressWidth: UInt64(levels - 2))
    guest.setRootTable(tables.root, scalable: false)
    guest.enableTranslation()
    if case .at = guest.port(Self.source).answer(address) { return nil }
    return guest.takeFault()?.reason ?? 0
  }

  // MARK: CAP

  @Test("AFL, RWBF, PLMR and PHMR are clear, and their commands and registers do nothing", arguments: units)
  func commandsNotOffered(unit: Unit) throws {
    #expect(unit.capabilities.capability[bits: 3...6] == 0)
    let guest = try unit.guest()
    guest.write32(0x18, 0x3800_0000)  // SFL, EAFL, WBF
    #expect(guest.status == 0)
    guest.write32(0x64, .max)
    #expect(guest.read32(0x64) == 0)
    for offset in [0x58, 0x68, 0x70, 0x78] {
      guest.write64(offset, .max)
      #expect(guest.read64(offset) == 0)
    }
  }

  @Test("CM: a context entry that is not present is cached where offered", arguments: units)
  func cachingMode(unit: Unit) throws {
    guard unit.options.dmaTranslation else { return }
    let guest = try unit.guest()
    let table = guest.page()
    let tables = guest.legacyTables(
      source: Self.source, secondStage: table, addressWidth: unit.options.addressWidth >= 48 ? 2 : 1)
    let present = guest.load(tables.context)
    guest.store(0, at: tables.context)
    guest.setRootTable(tables.root, scalable: false)
    guest.enableTranslation()
    let port = guest.port(Self.source)
    _ = port.answer(0x5000)
    _ = guest.takeFault()
    guest.store(present, at: tables.context)
    _ = port.answer(0x5000)
    #expect((guest.takeFault()?.reason == 0x02) == unit.cap(7))
  }

  @Test("SAGAW lists the address widths that entries may select", arguments: units, [1, 2, 3] as [UInt64])
  func addressWidths(unit: Unit, width: UInt64) throws {
    #expect((try legacy(unit, width: width) == nil) == unit.cap(8 + Int(width)))
  }

  @Test("MGAW: an address beyond it is refused, and one within passes", arguments: units)
  func guestAddressWidth(unit: Unit) throws {
    guard unit.options.dmaTranslation else { return }
    let bits = Int(unit.capabilities.capability[bits: 16...21]) + 1
    #expect(bits == unit.options.addressWidth)
    let width = UInt64(bits - 30) / 9
    #expect(try legacy(unit, width: width, address: 1 << UInt64(bits - 1)) == nil)
    if bits < 57 { #expect(try legacy(unit, width: width, address: 1 << UInt64(bits)) == 0x04) }
  }

  @Test(
    "second-stage pages of 2 MiB and 1 GiB work if and only if SSLPS offers them", arguments: units, [34, 35])
  func largePages(unit: Unit, bit: Int) throws {
    guard unit.options.dmaTranslation else { return }
    let leaf: UInt64 = bit == 34 ? 0x20_0083 : 0x83
    #expect((try legacy(unit, leaf: leaf, level: bit - 32) == nil) == unit.cap(bit))
  }

  @Test("PSI and MAMV: page-selective invalidations cover up to 2 to the MAMV pages", arguments: units)
  func pageSelective(unit: Unit) throws {
    #expect(unit.cap(39))
    let most = unit.capabilities.capability[bits: 48...53]
    let guest = try unit.guest()
    guest.enableQueue(wide: unit.options.scalableMode)
    #expect(guest.submitAndWait(CacheTests.iotlb(3, domain: 1, address: 0, mask: most)))
    #expect(!guest.submitAndWait(CacheTests.iotlb(3, domain: 1, address: 0, mask: most + 1)))
  }

  @Test("FRO and NFR give the place and number of the fault records", arguments: units)
  func faultRecords(unit: Unit) throws {
    let guest = try unit.guest()
    let place = Int(unit.capabilities.capability[bits: 24...33]) * 16
    let count = Int(unit.capabilities.capability[bits: 40...47]) + 1
    guest.setRootTable(guest.page(), scalable: false)
    guest.enableTranslation()
    for function in 0...UInt8(count) {
      _ = guest.port(RequesterID(bus: 0, device: 1, function: function)).answer(0)
    }
    for index in 0..<count { #expect(guest.read64(place + 16 * index + 8)[bit: 63]) }
    #expect(guest.read64(place + 16 * count + 8) == 0)
    #expect(guest.read32(0x34)[bit: 0], "PFO")
  }

  @Test("DWD and DRD: an invalidation may request a drain, whether they are set or not", arguments: units)
  func drain(unit: Unit) throws {
    #expect(unit.cap(54) == unit.options.dmaDrain && unit.cap(55) == unit.options.dmaDrain)
    let guest = try unit.guest()
    guest.enableQueue(wide: unit.options.scalableMode)
    #expect(guest.submitAndWait([2 | 1 << 4 | 0xc0, 0]))
  }

  @Test("FS1GP: first-stage pages of 1 GiB work where offered", arguments: units)
  func firstStageGigabytePages(unit: Unit) throws {
    guard unit.options.firstStage else { return #expect(!unit.cap(56)) }
    let setting = try scalable(unit)
    let slot = setting.guest.slot(of: Self.input, in: setting.root, levels: 4, level: 3)
    setting.guest.store(0xe7, at: slot)
    #expect((setting.reason() == nil) == unit.cap(56))
  }

  @Test("FS5LP: five-level first-stage tables work where offered", arguments: units)
  func fiveLevels(unit: Unit) throws {
    guard unit.options.firstStage else { return #expect(!unit.cap(60)) }
    let setting = try scalable(unit)
    let top = setting.guest.page()
    setting.guest.store(setting.root | 0x27, at: top)
    setting.guest.store(top | 1 << 2, at: setting.tables.entry + 16)
    #expect((setting.reason() == nil) == unit.cap(60))
  }

  @Test("PI is clear, and a posted interrupt entry is refused", arguments: units)
  func postedInterrupts(unit: Unit) throws {
    #expect(!unit.cap(59))
    guard unit.ecap(3) else { return }
    #expect(try interrupt(unit, low: 1 | 1 << 15) == .blocked(.interruptEntryReserved))
  }

  // MARK: ECAP

  @Test("C: walks read memory, whether the bit is set or not", arguments: units)
  func coherent(unit: Unit) throws {
    #expect(unit.ecap(0) == unit.options.nested)
    guard unit.options.scalableMode else { return }
    let setting = try scalable(unit)
    setting.guest.store(0, at: setting.leaf)
    #expect(setting.reason() != nil)
  }

  @Test("QI: the invalidation queue works", arguments: units)
  func queue(unit: Unit) throws {
    let guest = try unit.guest()
    guest.enableQueue(wide: unit.options.scalableMode)
    #expect(guest.submitAndWait([1 | 1 << 4, 0]) == unit.ecap(1))
  }

  @Test("DT: translation type 01, DTE and device-TLB invalidations work where offered", arguments: units)
  func deviceTLB(unit: Unit) throws {
    if unit.options.dmaTranslation { #expect((try legacy(unit, type: 1) == nil) == unit.ecap(2)) }
    if unit.options.scalableMode { #expect(try passes(unit) { $0.contextLow = 1 << 2 } == unit.ecap(2)) }
    let guest = try unit.guest()
    guest.enableQueue(wide: unit.options.scalableMode)
    #expect(guest.submitAndWait([3, 0]) == unit.ecap(2))
  }

  /// Returns the result of an interrupt request for entry 0.
  private func interrupt(_ unit: Unit, low: UInt64, extended: Bool = false) throws -> RemappedInterrupt {
    let guest = try unit.guest()
    let table = guest.page()
    guest.store(low, at: table)
    guest.write64(0xb8, table | (extended ? 1 << 11 : 0))
    guest.command(set: 24)
    guest.command(set: 25)
    return guest.unit.remap(
      InterruptMessage(address: 0xfee0_0010, data: 0), from: Self.source, recordFault: false)
  }

  @Test("IR: interrupt requests are remapped where offered", arguments: units)
  func interruptRemapping(unit: Unit) throws {
    let answer = try interrupt(unit, low: 1 | 0x41 << 16)
    guard case .deliver(let message) = answer else { return #expect(Bool(false), "\(answer)") }
    #expect((message.data & 0xff == 0x41) == unit.ecap(3))
  }

  @Test("EIM: 32-bit destinations work where offered", arguments: units)
  func extendedInterruptMode(unit: Unit) throws {
    guard unit.ecap(3) else { return #expect(!unit.ecap(4)) }
    let answer = try interrupt(unit, low: 1 | 0x1_0203 << 32, extended: true)
    #expect((answer != .blocked(.interruptEntryReserved)) == unit.ecap(4))
    let guest = try unit.guest()
    guest.write32(0x44, .max)
    #expect((guest.read32(0x44) == .max) == unit.ecap(4), "FEUADDR")
  }

  @Test("PT: pass-through works where offered", arguments: units)
  func passThrough(unit: Unit) throws {
    if unit.options.dmaTranslation { #expect((try legacy(unit, type: 2) == nil) == unit.ecap(6)) }
    guard unit.options.scalableMode else { return }
    #expect(try passes(unit) { $0.words = Guest.pasidEntry(type: 4) } == unit.ecap(6))
  }

  @Test("SC: SNP is accepted where offered and in scalable mode, and PGSNP is accepted on every unit", arguments: units)
  func snoopControl(unit: Unit) throws {
    guard unit.options.dmaTranslation else { return }
    // In scalable mode SNP is ignored where it is not offered.
    let isTaken = unit.ecap(7) || unit.options.scalableMode
    #expect((try legacy(unit, leaf: 0x20_0803) == nil) == isTaken)
    if unit.options.scalableMode { #expect(try passes(unit) { $0.words.1 |= 1 << 24 }) }
  }

  @Test("IRO gives the place of the IOTLB registers", arguments: units)
  func iotlbRegisters(unit: Unit) throws {
    let guest = try unit.guest()
    let place = Int(unit.capabilities.extended[bits: 8...17]) * 16
    guest.write64(place + 8, 1 << 63 | 1 << 60)
    #expect(guest.read64(place + 8) >> 57 == 1 << 3 | 1)
  }

  @Test("MHMV: an interrupt entry invalidation covers up to 2 to the MHMV entries", arguments: units)
  func handleMask(unit: Unit) throws {
    let most = unit.capabilities.extended[bits: 20...23]
    #expect((most == 15) == unit.ecap(3))
    let guest = try unit.guest()
    guest.enableQueue(wide: unit.options.scalableMode)
    _ = guest.observer.take()
    #expect(guest.submitAndWait([4 | 1 << 4 | most << 27, 0]) == unit.ecap(3))
    if unit.ecap(3) { #expect(guest.observer.take() == [.interruptEntries(0...0x7fff)]) }
  }

  @Test("NEST: nested translation works where offered", arguments: units)
  func nested(unit: Unit) throws {
    guard unit.options.firstStage else { return #expect(!unit.ecap(26)) }
    #expect(try passes(unit) { $0.words.0 |= 3 << 6 } == unit.ecap(26))
  }

  @Test("PRS: PRE and page requests work where offered", arguments: units)
  func pageRequests(unit: Unit) throws {
    guard unit.options.scalableMode else { return #expect(!unit.ecap(29)) }
    let setting = try scalable(unit) { $0.contextLow = 1 << 4 | (unit.ecap(2) ? 1 << 2 : 0) }
    #expect((setting.reason() == nil) == unit.ecap(29))
    setting.guest.write64(0xd0, setting.guest.page())
    let outcome = setting.guest.requestPort(Self.source).requestPage(
      PageRequest(address: 0, prefix: nil, reads: true, writes: false, isLastInGroup: true, groupIndex: 0))
    #expect((outcome == .queued) == unit.ecap(29))
  }

  @Test("ERS: ERE and execute requests work where offered", arguments: units)
  func executeRequests(unit: Unit) throws {
    guard unit.options.firstStage, unit.options.pasidBits > 0 else { return #expect(!unit.ecap(30)) }
    let access: DMAAccess = [.read, .execute]
    let works = try passes(unit, access, pasid: 0) {
      $0.words.2 |= 1 << 1
      $0.contextLow = 1 << 3
    }
    #expect(works == unit.ecap(30))
    #expect(try !passes(unit, access, pasid: 0) { $0.contextLow = 1 << 3 }, "without ERE")
  }

  @Test("SRS: SRE works where offered", arguments: units)
  func supervisorRequests(unit: Unit) throws {
    guard unit.options.scalableMode else { return #expect(!unit.ecap(31)) }
    #expect(try passes(unit) { $0.words.2 |= 1 } == unit.ecap(31))
  }

  @Test("NWFS: a translation request with the no-write flag gets no write permission", arguments: units)
  func noWriteFlag(unit: Unit) throws {
    guard unit.options.scalableMode, unit.ecap(2) else { return #expect(!unit.ecap(33)) }
    let setting = try scalable(unit) { $0.contextLow = 1 << 2 }
    let answer = setting.guest.requestPort(Self.source).translate(Self.input, noWrite: true, prefix: nil)
    guard case .success(let page) = answer else { return #expect(Bool(false), "\(answer)") }
    #expect(page.isWritable != unit.ecap(33))
  }

  @Test("EAFS: EAFE works where offered, and walks set EA", arguments: units)
  func extendedAccessed(unit: Unit) throws {
    guard unit.options.firstStage else { return #expect(!unit.ecap(34)) }
    let setting = try scalable(unit) { $0.words = ($0.words.0, $0.words.1 | 1 << 23, $0.words.2 | 1 << 7) }
    #expect((setting.reason() == nil) == unit.ecap(34))
    #expect(setting.guest.load(setting.leaf)[bit: 10] == unit.ecap(34))
  }

  @Test("PSS and PASID: a PASID of the offered width works, and a wider one is refused", arguments: units)
  func pasids(unit: Unit) throws {
    guard unit.options.scalableMode else { return #expect(!unit.ecap(40)) }
    let bits = unit.ecap(40) ? unit.capabilities.extended[bits: 35...39] + 1 : 0
    #expect(bits == UInt64(unit.options.pasidBits))
    guard bits > 0 else { return #expect(try !passes(unit, pasid: 0) { $0.contextLow = 1 << 3 }) }
    func reason(_ pasid: UInt32) throws -> UInt8? {
      try scalable(unit) {
        $0.contextLow = 1 << 3
        $0.pasid = pasid
      }.reason(pasid: pasid)
    }
    #expect(try reason(1 << UInt32(bits) - 1) == nil)
    if bits < 20 { #expect(try reason(1 << UInt32(bits)) == 0x46) }
  }

  @Test("a request with a PASID beyond PSS gets neither a translation nor a page", arguments: units)
  func widePASIDs(unit: Unit) throws {
    guard unit.ecap(40), unit.ecap(2), unit.options.pasidBits < 20 else { return }
    let pasid: UInt32 = 1 << UInt32(unit.options.pasidBits)
    let setting = try scalable(unit) {
      $0.contextLow = 1 << 2 | 1 << 3 | (unit.ecap(29) ? 1 << 4 : 0)
      $0.pasid = pasid
    }
    let port = setting.guest.requestPort(Self.source)
    #expect(port.translate(Self.input, noWrite: false, prefix: PASIDPrefix(pasid: pasid)) == .unsupportedRequest)
    #expect(setting.guest.takeFault()?.reason == 0x46)
    guard unit.ecap(29) else { return }
    let request = PageRequest(
      address: 0, prefix: PASIDPrefix(pasid: pasid), reads: true, writes: false, isLastInGroup: true, groupIndex: 0)
    #expect(port.requestPage(request) == .answered(.invalidRequest))
    #expect(setting.guest.takeFault()?.reason == 0x46)
  }

  @Test("DIT is clear, and PFSID of a device-TLB invalidation is reserved", arguments: units)
  func throttling(unit: Unit) throws {
    #expect(!unit.ecap(41))
    let guest = try unit.guest()
    guest.enableQueue(wide: unit.options.scalableMode)
    #expect(!guest.submitAndWait([3 | 1 << 12, 0]))
  }

  @Test("PDS: a wait descriptor may drain page requests where offered", arguments: units)
  func pageRequestDrain(unit: Unit) throws {
    let guest = try unit.guest()
    guest.enableQueue(wide: unit.options.scalableMode)
    guest.submit([0x1_0000_00a5, guest.statusPage])
    #expect((guest.memory.loadUInt32(at: guest.statusPage) == 1) == unit.ecap(42))
  }

  @Test("SMTS: RTADDR's table mode is writable where offered", arguments: units)
  func scalableMode(unit: Unit) throws {
    let guest = try unit.guest()
    guest.write64(0x20, 0xc00)
    #expect((guest.read64(0x20) == 0xc00) == unit.ecap(43))
  }

  @Test("VCS is clear, and there are no virtual command registers", arguments: units)
  func virtualCommands(unit: Unit) throws {
    #expect(!unit.ecap(44))
    let guest = try unit.guest()
    for offset in [0xe00, 0xe10, 0xe20] {
      guest.write64(offset, .max)
      #expect(guest.read64(offset) == 0)
    }
  }

  @Test("SSADS: second-stage accessed and dirty bits work where offered", arguments: units)
  func secondStageAccessedDirty(unit: Unit) throws {
    guard unit.ecap(46) else { return #expect(!unit.ecap(45)) }
    let setting = try scalable(unit) {
      $0.words.0 = $0.words.0 & ~(7 << 6) | 2 << 6 | 1 << 9
      $0.words.1 |= unit.ecap(48) ? 1 << 23 : 0
    }
    #expect((setting.reason(.write) == nil) == unit.ecap(45))
    let leaf = setting.guest.load(setting.guest.slot(of: Self.input, in: setting.second, levels: 4))
    #expect(leaf & 0x300 == (unit.ecap(45) ? 0x300 : 0))
  }

  @Test("SSTS and FSTS: PASID-table entries may select the offered stages", arguments: units)
  func stages(unit: Unit) throws {
    guard unit.options.scalableMode else { return #expect(!unit.ecap(46) && !unit.ecap(47)) }
    #expect(try passes(unit) { $0.words.0 = $0.words.0 & ~(7 << 6) | 2 << 6 | 2 << 2 } == unit.ecap(46))
    // Without a first stage FSTPTR is 0, and memory there is empty.
    let setting = try scalable(unit) { $0.words.0 = $0.words.0 & ~(7 << 6) | 1 << 6 }
    #expect((setting.reason() == 0x5b) != unit.ecap(47))
  }

  @Test("SMPWC: PWSNP works where offered, and without PWSNP walks must not set accessed bits", arguments: units)
  func pageWalkCoherency(unit: Unit) throws {
    #expect(unit.ecap(48) || !unit.options.svm, "shared virtual addressing needs it")
    guard unit.options.firstStage else { return #expect(!unit.ecap(48)) }
    #expect(try passes(unit) { $0.words.1 |= 1 << 23 } == unit.ecap(48))
    let reason = try scalable(unit, tableBits: 0x7, leafBits: 0x7).reason()
    #expect(reason == (unit.ecap(48) ? 0x90 : nil))
  }

  @Test("RPS: RID_PASID works where offered, and otherwise requests without PASID use PASID 0", arguments: units)
  func ridPASID(unit: Unit) throws {
    guard unit.options.scalableMode else { return #expect(!unit.ecap(49)) }
    // PASID 0 has an entry, PASID 9 has none.
    let setting = try scalable(unit) { $0.contextHigh = 9 }
    #expect(setting.reason() == (unit.ecap(49) ? 0x59 : nil))
  }

  @Test("ADMS is clear, and with the abort-DMA mode in RTADDR all requests are refused", arguments: units)
  func abortDMA(unit: Unit) throws {
    #expect(!unit.ecap(52))
    guard unit.options.scalableMode else { return }
    let setting = try scalable(unit)
    setting.guest.write64(0x20, setting.tables.root | 3 << 10)
    setting.guest.forgetAll()
    #expect(setting.reason() == 0x30)
  }

  @Test("RPRIVS: RID_PRIV makes requests without PASID supervisor requests", arguments: units)
  func ridPrivilege(unit: Unit) throws {
    guard unit.options.firstStage, unit.ecap(31) else { return #expect(!unit.ecap(53)) }
    // A supervisor's page: U/S is clear.
    let setting = try scalable(unit, leafBits: 0x63) {
      $0.words.2 |= 1
      $0.contextHigh = 1 << 20
    }
    #expect((setting.reason() == nil) == unit.ecap(53))
  }

  @Test("each capability bit that is set has a test here", arguments: units)
  func tested(unit: Unit) {
    let cap: UInt64 =
      .lowBits(3) | 1 << 7 | 0xe00 | 0x3f << 16 | 0x3ff << 24 | 3 << 34 | 1 << 39 | 0xff << 40 | 0x3f << 48 | 3 << 54
      | 1 << 56 | 1 << 60
    var ecap: UInt64 = 0b1101_1111 | 0x3ff << 8 | 0xf << 20 | 1 << 26 | 7 << 29 | 3 << 33 | 0x1f << 35 | 1 << 40
    ecap |= 3 << 42 | 1 << 45 | 1 << 46 | 1 << 47 | 1 << 48 | 1 << 49 | 1 << 53
    #expect(unit.capabilities.capability & ~cap == 0)
    #expect(unit.capabilities.extended & ~ecap == 0)
  }

  @Test("ND: domain identifiers have 16 bits", arguments: units)
  func domains(unit: Unit) throws {
    #expect(unit.capabilities.capability[bits: 0...2] == 6)
    let guest = try unit.guest()
    guest.enableQueue(wide: unit.options.scalableMode)
    _ = guest.observer.take()
    #expect(guest.submitAndWait(CacheTests.iotlb(2, domain: 0xffff)))
    #expect(guest.observer.take() == [.translationsOfDomain(0xffff)])
  }
}
