import Hardware
import Testing
import VTdOracle

@testable import VTd

/// Execute requests: ERE, XD and NXE, SMEP (VT-d 3.6.1, 9.6).
@Suite("execute requests")
struct ExecuteRequestTests {
  static let input: UInt64 = 0x1_0000_0000
  static let source = RequesterID(bus: 0, device: 3, function: 0)
  static let executeDisable: UInt64 = 1 << 63
  static let sre: UInt64 = 1 << 0
  static let ere: UInt64 = 1 << 1
  static let nxe: UInt64 = 1 << 5
  static let smep: UInt64 = 1 << 6

  struct Case: Sendable {
    var third: UInt64
    var entry: UInt64
    var isPrivileged = false
    /// The fault's reason; nil if execution is permitted.
    var reason: UInt8?
  }

  static let cases = [
    Case(third: 0, entry: 0x20_0067, reason: 0x5c),
    Case(third: ere, entry: 0x20_0067),
    Case(third: ere, entry: 0x20_0067 | executeDisable, reason: 0x72),
    Case(third: ere | nxe, entry: 0x20_0067),
    Case(third: ere | nxe, entry: 0x20_0067 | executeDisable, reason: 0x82),
    Case(third: ere | sre, entry: 0x20_0067, isPrivileged: true),
    Case(third: ere | sre | smep, entry: 0x20_0067, isPrivileged: true, reason: 0x82),
    Case(third: ere | sre | smep, entry: 0x20_0063, isPrivileged: true),
    Case(third: ere | smep, entry: 0x20_0067),
  ]

  @Test("untranslated requests and translation requests obey ERE, XD, NXE and SMEP", arguments: cases)
  func permission(_ test: Case) throws {
    let guest = try Guest.nested { TranslationRequestTests.all(&$0) }
    #expect(guest.read64(0x10)[bit: 30])
    let table = guest.page()
    guest.map(Self.input, in: table, levels: 4, entry: test.entry, tableBits: 0x27)
    _ = guest.startScalable(
      Self.source, Guest.pasidEntry(type: 1, firstStage: table, second: 1 << 23, third: test.third))
    let prefix = PASIDPrefix(pasid: 0, isPrivileged: test.isPrivileged, executes: true)
    let port = guest.requestPort(Self.source)
    let memory = port.dmaPort(for: prefix)
    // The page's read right is cached; it must not permit execution.
    #expect(memory.answer(Self.input) == .at(0x20_0000, 8))
    if let reason = test.reason {
      #expect(memory.answer(Self.input, [.read, .execute]) == .refused(.translation))
      #expect(guest.read64(0x228)[bit: 30], "EXE")
      #expect(guest.takeFault()?.reason == reason)
    } else {
      #expect(memory.answer(Self.input, [.read, .execute]) == .at(0x20_0000, 8))
    }
    guard case .success(let page) = port.translate(Self.input, noWrite: false, prefix: prefix) else {
      Issue.record("not translated")
      return
    }
    #expect(page.isReadable)
    #expect(page.isExecutable == (test.reason == nil))
    #expect(guest.takeFault() == nil)
  }

  @Test("without ECAP.ERS, ERE and SMEP are reserved, and no request may execute")
  func notOffered() throws {
    for (third, reason): (UInt64, UInt8) in [(0, 0x5c), (Self.ere, 0x5a), (Self.smep, 0x5a)] {
      let guest = try Guest.firstStage { TranslationRequestTests.all(&$0) }
      #expect(!guest.read64(0x10)[bit: 30])
      let table = guest.page()
      guest.map(Self.input, in: table, levels: 4, entry: 0x20_0067, tableBits: 0x27)
      _ = guest.startScalable(Self.source, Guest.pasidEntry(type: 1, firstStage: table, third: third))
      let memory = guest.requestPort(Self.source).dmaPort(for: PASIDPrefix(pasid: 0))
      #expect(memory.answer(Self.input, [.read, .execute]) == .refused(.translation))
      #expect(guest.takeFault()?.reason == reason)
    }
  }

  @Test("without a first stage, readable pages are executable")
  func secondStage() throws {
    for type: UInt64 in [2, 4] {
      let guest = try Guest.nested { TranslationRequestTests.all(&$0) }
      let table = guest.page()
      guest.map(Self.input, in: table, levels: 4, entry: Self.input | 1, tableBits: 3)
      _ = guest.startScalable(Self.source, Guest.pasidEntry(type: type, secondStage: table, second: 1 << 23))
      let prefix = PASIDPrefix(pasid: 0, executes: true)
      let port = guest.requestPort(Self.source)
      #expect(port.dmaPort(for: prefix).answer(Self.input, [.read, .execute]) == .at(Self.input, 8))
      guard case .success(let page) = port.translate(Self.input, noWrite: false, prefix: prefix) else {
        Issue.record("not translated")
        return
      }
      #expect(page.isExecutable)
    }
  }
}
