import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import VTd

/// Requests that the unit lets through and that find no RAM: no fault of the unit's, but the function has it in its
/// Status register.
@Suite("Requests that nothing answers")
struct UnclaimedRequestTests {
  private static let source = RequesterID(bus: 0, device: 3, function: 0)
  private static let input: UInt64 = 0x1_0000_0000

  @Test("A mapping to where no RAM is leaves Received Master Abort and no fault; a fault leaves none")
  func unclaimed() throws {
    let guest = try Guest.firstStage { _ in }
    let table = guest.page()
    guest.map(Self.input, in: table, levels: 4, entry: 0xc000_0067, tableBits: 0x27)
    guest.start(Self.source, scalable: Guest.pasidEntry(type: 1, firstStage: table))
    let requester = Requester(id: Self.source, busMasterEnable: true)
    let port = guest.unit.makePort(for: requester)
    #expect(throws: DMAError.notMemory) { try port.loadUInt32(at: Self.input) }
    #expect(requester.takeMasterAbort())
    #expect(!requester.takeMasterAbort())
    #expect(throws: DMAError.notMemory) { try port.storeUInt64(1, at: Self.input) }
    #expect(requester.takeMasterAbort())
    #expect(throws: DMAError.translation) { try port.loadUInt32(at: Self.input + 0x1000) }
    #expect(!requester.takeMasterAbort())
  }
}
