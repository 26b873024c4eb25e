import Hardware
import Testing
import VTdOracle

@testable import VTd

/// Translation requests and translated requests (VT-d 4.1, 4.2, 7.1.3).
@Suite("translation requests")
struct TranslationRequestTests {
  let source = RequesterID(bus: 0, device: 3, function: 0)
  static let input: UInt64 = 0x1_0000_0000

  func legacy(type: UInt64, entry: UInt64, _ change: (inout UnitOptions) -> Void = { _ in }) throws -> Guest {
    let guest = try Guest {
      $0.deviceIOTLB = true
      change(&$0)
    }
    let table = guest.page()
    guest.map(Self.input, in: table, levels: 4, entry: entry, tableBits: 3)
    guest.setRootTable(guest.legacyTables(source: source, secondStage: table, type: type).root, scalable: false)
    guest.enableTranslation()
    return guest
  }

  func scalable(
    third: UInt64 = 0, contextBits: UInt64 = 0xc, nested: Bool = true, map: (Guest, UInt64) -> Void
  ) throws -> Guest {
    let guest = try nested ? Guest.nested { Self.all(&$0) } : Guest.firstStage { Self.all(&$0) }
    let table = guest.page()
    map(guest, table)
    let second = nested ? UInt64(1 << 23) : 0  // PWSNP: the unit has SMPWC
    _ = guest.startScalable(
      source, Guest.pasidEntry(type: 1, firstStage: table, second: second, third: third), contextBits: contextBits)
    return guest
  }

  static func all(_ options: inout UnitOptions) {
    options.deviceIOTLB = true
    options.pasidBits = 20
    options.svm = true
  }

  func page(_ completion: TranslationCompletion) -> DeviceTranslation? {
    guard case .success(let page) = completion else { return nil }
    return page
  }

  @Test(
    "translation type 01 answers with the page's size and rights",
    arguments: [(3, true, true), (1, true, false), (2, false, true)] as [(UInt64, Bool, Bool)])
  func legacyRights(bits: UInt64, reads: Bool, writes: Bool) throws {
    let guest = try legacy(type: 1, entry: 0x20_0000 | bits)
    let port = guest.requestPort(source)
    let expected = DeviceTranslation(address: 0x20_0000, shift: 12, isReadable: reads, isWritable: writes)
    #expect(port.translate(Self.input | 0x123, noWrite: false, prefix: nil) == .success(expected))
    #expect(guest.takeFault() == nil)
    #expect(guest.unit.counters[.translationRequests] == 1)
  }

  @Test("the completion states the size of a large page")
  func largePage() throws {
    let guest = try scalable { guest, table in
      guest.map(Self.input, in: table, levels: 4, entry: 0x40_00e7, atLevel: 2, tableBits: 0x27)
    }
    let expected = DeviceTranslation(address: 0x40_0000, shift: 21, isReadable: true, isWritable: true)
    #expect(guest.requestPort(source).translate(Self.input + 0x5678, noWrite: false, prefix: nil) == .success(expected))
  }

  @Test("a missing permission is a success without access, and no fault")
  func missing() throws {
    let guest = try legacy(type: 1, entry: 0)
    #expect(guest.requestPort(source).translate(Self.input, noWrite: false, prefix: nil) == .success(.noAccess()))
    #expect(guest.takeFault() == nil)
    let first = try scalable { guest, table in
      guest.map(Self.input, in: table, levels: 4, entry: 0x20_0063, tableBits: 0x27)  // supervisor
    }
    let port = first.requestPort(source)
    #expect(port.translate(Self.input, noWrite: false, prefix: PASIDPrefix(pasid: 0)) == .success(.noAccess()))
    #expect(port.translate(Self.input << 1, noWrite: false, prefix: PASIDPrefix(pasid: 0)) == .success(.noAccess()))
    #expect(first.takeFault() == nil)
  }

  @Test("a page is marked dirty at once if its translation gives the device write permission, and only then")
  func dirty() throws {
    for (entry, noWrite, writes, expected): (UInt64, Bool, Bool, UInt64) in [
      (0x20_0005, false, false, 0x20_0025), (0x20_0007, false, true, 0x20_0067), (0x20_0007, true, false, 0x20_0027),
    ] {
      var slot: UInt64 = 0
      let guest = try scalable { guest, table in
        guest.map(Self.input, in: table, levels: 4, entry: entry, tableBits: 0x27)
        slot = guest.slot(of: Self.input, in: table, levels: 4)
      }
      let found = page(guest.requestPort(source).translate(Self.input, noWrite: noWrite, prefix: nil))
      #expect(found?.isReadable == true)
      #expect(found?.isWritable == writes)
      #expect(guest.load(slot) == expected)
    }
  }

  @Test("a request that the tables do not allow is unsupported, and recorded as a translation request's fault")
  func unsupported() throws {
    let guest = try legacy(type: 0, entry: 0x20_0003)
    let port = guest.requestPort(source)
    #expect(port.translate(Self.input, noWrite: false, prefix: nil) == .unsupportedRequest)
    #expect(guest.read64(0x228)[bits: 60...61] == 1)
    #expect(guest.takeFault()?.reason == 0x0d)
    #expect(port.translate(Self.input, noWrite: false, prefix: PASIDPrefix(pasid: 4)) == .unsupportedRequest)
    let fault = try #require(guest.takeFault())
    #expect(fault.reason == 0x31)
    #expect(fault.pasid == 4)

    for (contextBits, reason): (UInt64, UInt8) in [(0x8, 0x44), (0x4, 0x45)] {
      let guest = try scalable(contextBits: contextBits) { _, _ in }
      let completion = guest.requestPort(source).translate(
        Self.input, noWrite: false, prefix: PASIDPrefix(pasid: 0))
      #expect(completion == .unsupportedRequest)
      #expect(guest.takeFault()?.reason == reason)
    }
    let absent = try scalable { _, _ in }
    #expect(
      absent.requestPort(source).translate(Self.input, noWrite: false, prefix: PASIDPrefix(pasid: 5))
        == .unsupportedRequest)
    #expect(absent.takeFault()?.reason == 0x59)
  }

  @Test("an unreadable or malformed entry is a completer abort")
  func abort() throws {
    let guest = try scalable { guest, table in
      guest.map(Self.input, in: table, levels: 4, entry: 0x8_0000_0000_0027, tableBits: 0x27)
    }
    #expect(guest.requestPort(source).translate(Self.input, noWrite: false, prefix: nil) == .completerAbort)
    #expect(guest.takeFault()?.reason == 0x72)
  }

  @Test("while remapping is off, translation requests and translated requests are refused")
  func disabled() throws {
    let guest = try legacy(type: 1, entry: 0x20_0003)
    guest.command(clear: 31)
    let port = guest.requestPort(source)
    #expect(port.translate(Self.input, noWrite: false, prefix: nil) == .unsupportedRequest)
    #expect(port.translatedPort.answer(0x20_0000) == .refused(.translation))
    #expect(guest.takeFault() == nil)
  }

  @Test("interrupt and non-canonical addresses give a success without access, and record a fault")
  func addresses() throws {
    let guest = try scalable { _, _ in }
    let port = guest.requestPort(source)
    for (address, reason): (UInt64, UInt8) in [(0xfee0_1000, 0x87), (0x8000_0000_0000_0000, 0x80)] {
      #expect(port.translate(address, noWrite: false, prefix: nil) == .success(.noAccess()))
      #expect(guest.takeFault()?.reason == reason)
    }
  }

  @Test("privileged requests need SRE, and their rights are marked as privileged")
  func privileged() throws {
    let prefix = PASIDPrefix(pasid: 0, isPrivileged: true)
    for (third, access): (UInt64, Bool) in [(0, false), (1, true)] {
      let guest = try scalable(third: third) { guest, table in
        guest.map(Self.input, in: table, levels: 4, entry: 0x20_0063, tableBits: 0x27)
      }
      let found = page(guest.requestPort(source).translate(Self.input, noWrite: false, prefix: prefix))
      #expect(found?.isPrivileged == true)
      #expect(found?.isReadable == access)
      #expect(guest.takeFault() == nil)
      // For an untranslated request, the missing SRE has its own fault.
      let memory = guest.requestPort(source).dmaPort(for: prefix)
      if access {
        #expect(memory.answer(Self.input) == .at(0x20_0000, 8))
      } else {
        #expect(memory.answer(Self.input) == .refused(.translation))
        #expect(guest.read64(0x228)[bit: 29])
        #expect(guest.takeFault()?.reason == 0x5d)
      }
    }
  }

  @Test("translated requests pass only for a device that may use a device TLB, page by page")
  func translated() throws {
    for (type, passes): (UInt64, Bool) in [(1, true), (0, false)] {
      let guest = try legacy(type: type, entry: 0x20_0003)
      let port = guest.requestPort(source).translatedPort
      if passes {
        #expect(port.answer(0x20_0ff8, count: 64, .write) == .at(0x20_0ff8, 8))
        #expect(guest.takeFault() == nil)
        #expect(port.answer(0xfee0_0000, .write) == .refused(.translation))
        #expect(guest.takeFault()?.reason == 0x0e)
      } else {
        #expect(port.answer(0x20_0000, .write) == .refused(.translation))
        #expect(guest.read64(0x228)[bits: 60...61] == 2)
        #expect(guest.takeFault()?.reason == 0x0d)
      }
    }
  }

  @Test("without Bus Master Enable no request leaves the function")
  func busMaster() throws {
    let guest = try legacy(type: 1, entry: 0x20_0003)
    let port = guest.unit.makeRequestPort(for: Requester(id: source))
    #expect(port.translate(Self.input, noWrite: false, prefix: nil) == .unsupportedRequest)
    #expect(port.translatedPort.answer(0x20_0000) == .refused(.disabled))
    #expect(guest.takeFault() == nil)
  }

  @Test("without an IOMMU only untranslated requests without PASID pass")
  func withoutUnit() throws {
    let guest = try Guest()
    let port = DirectRemapper(memory: guest.memory).makeRequestPort(for: Requester(id: source, busMasterEnable: true))
    #expect(port.dmaPort(for: nil).answer(0x1000) == .at(0x1000, 8))
    #expect(port.dmaPort(for: PASIDPrefix(pasid: 1)).answer(0x1000) == .refused(.translation))
    #expect(port.translatedPort.answer(0x1000) == .refused(.translation))
    #expect(port.translate(0x1000, noWrite: false, prefix: nil) == .unsupportedRequest)
    #expect(port.requestPage(.stopMarker(pasid: 1)) == .discarded)
  }
}
