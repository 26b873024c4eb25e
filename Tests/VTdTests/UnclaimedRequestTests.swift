import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import VTd

/// Requests that the unit translates to an address without RAM: the unit has no fault, but the function's Status
/// register records a master abort.
@Suite("requests to addresses without RAM")
struct UnclaimedRequestTests {
  private static let source = RequesterID(bus: 0, device: 3, function: 0)
  private static let input: UInt64 = 0x1_0000_0000

  @Test("a mapping to an address without RAM sets Received Master Abort and is no fault; a fault does not set it")
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
