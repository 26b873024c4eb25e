import Devices
import Hardware
import Linux
import Synchronization
import Testing
import VTd

@testable import Machine

/// Tests a board with two different units: a scalable one for 00:04.0 and a legacy one for all other devices.
struct SeveralUnitsTests {
  private let accelerator = RecordingAccelerator()
  private let board: Board
  private let configuration: MachineConfiguration
  private let four = RequesterID(bus: 0, device: 4, function: 0)
  private let five = RequesterID(bus: 0, device: 5, function: 0)

  init() throws {
    var configuration = MachineConfiguration()
    var second = IntelIOMMUOptions()
    second.id = try Identifier(text: "second")
    second.devices = try DeviceNames(text: "04.0")
    second.unit.scalableMode = true
    second.unit.firstStage = true
    configuration.devices = [IntelIOMMUOptions(), second]
    self.configuration = configuration
    let size: UInt64 = 64 << 20
    board = try Board(
      memory: GuestMemory(size: size, lowLimit: size), accelerator: accelerator,
      layout: #require(BoardLayout(memorySize: size, physicalAddressWidth: 39)), processorCount: 1,
      units: configuration.unitPlacement(configuration.devicePlacement()), serialOutput: nil, events: EventQueue())
  }

  private func port(_ address: RequesterID) -> any DMAPort {
    board.environment(at: address).remapper.makePort(for: Requester(id: address, busMasterEnable: true))
  }

  private func store(_ value: UInt64, at address: UInt64) { _ = board.memory.storeUInt64(value, at: address) }

  private func command(_ unit: UInt64, _ bit: UInt64) {
    let status = board.readMemory(0xfed9_001c + 0x1000 * unit, 4) & 0x8680_0000
    board.writeMemory(0xfed9_0018 + 0x1000 * unit, 4, status | 1 << bit)
  }

  @Test("each unit translates for its own devices")
  func eachTranslatesForItsOwn() throws {
    #expect(board.readMemory(0xfed9_0010, 8) & 1 << 43 == 0)
    #expect(board.readMemory(0xfed9_1010, 8) & 1 << 43 != 0)
    // PASID 0 of 00:04.0: first stage, 0x1000 to 0x9000.
    for (address, value) in [
      (0x10_0000, 0x10_1001), (0x10_1000 + 0x20 * 32, 0x10_2001), (0x10_2000, 0x10_3001), (0x10_3000, 0x41),
      (0x10_3008, 5), (0x10_3010, 0x10_4000), (0x10_4000, 0x10_5027), (0x10_5000, 0x10_6027),
      (0x10_6000, 0x10_7027), (0x10_7008, 0x9067),
    ] as [(UInt64, UInt64)] { store(value, at: address) }
    board.writeMemory(0xfed9_1020, 8, 0x10_0400)
    command(1, 30)
    command(1, 31)
    store(0x1111, at: 0x1000)
    store(0x9999, at: 0x9000)
    #expect(try port(four).loadUInt64(at: 0x1000) == 0x9999)
    #expect(try port(five).loadUInt64(at: 0x1000) == 0x1111)

    // The other unit now translates, too. It has no root table, so it refuses its devices' requests; unit 1 is
    // unaffected.
    command(0, 31)
    #expect(throws: DMAError.translation) { try port(five).loadUInt64(at: 0x1000) }
    #expect(try port(four).loadUInt64(at: 0x1000) == 0x9999)

    let states = board.inspection.states()
    #expect(states.map(\.unit.name) == ["iommu0", "second"])
    #expect(states.map(\.snapshot.isTranslationEnabled) == [true, true])
    #expect(states.map { $0.functions.map(\.typeName) } == [["host bridge", "ISA bridge"], []])
    #expect(states[0].snapshot.counters[.faults] == 1)
    #expect(states[1].snapshot.counters[.firstStageWalks] >= 1)

    board.reset()
    #expect(board.readMemory(0xfed9_001c, 4) == 0)
    #expect(board.readMemory(0xfed9_101c, 4) == 0)
  }

  @Test("an explanation names the unit that translates for the device")
  func anExplanationAsksTheRightUnit() throws {
    let inspection = board.inspection
    func unitName(_ device: String) throws -> String {
      try inspection.translation(of: device, pasid: nil, address: 0, access: .read).unitName
    }
    #expect(try unitName("04.0") == "second")
    #expect(try unitName("00:05.0") == "iommu0")
    #expect(throws: RemappingInspection.Problem.self) { try unitName("nobody") }
  }

  @Test("each unit remaps the interrupts of its own devices")
  func eachRemapsItsOwnInterrupts() throws {
    // The second unit remaps interrupts with an empty table.
    board.writeMemory(0xfed9_10b8, 8, 0x20_0007)
    command(1, 24)
    command(1, 25)
    let message = InterruptMessage(address: 0xfee0_0000, data: 0x41)
    for address in [four, five] {
      let route = board.environment(at: address).interrupts.makeRoute(for: Requester(id: address))
      route.set(message)
      route.signal()
    }
    #expect(accelerator.interrupts.sent == [message])
    #expect(board.readMemory(0xfed9_1034, 4) & 2 != 0)  // The interrupt of 00:04.0 was blocked.
    #expect(board.readMemory(0xfed9_0034, 4) == 0)

    // The IOAPIC belongs to the first unit.
    board.writeMemory(0xfec0_0000, 4, 0x10 + 2 * 3)
    board.writeMemory(0xfec0_0010, 4, 0x51)
    #expect(board.inspection.states()[0].snapshot.counters[.interruptsPassed] == 1)
  }
}

/// An accelerator without CPUs that records the messages to the local APICs.
private final class RecordingAccelerator: Accelerator {
  let interrupts = RecordingInterrupts()
  let physicalAddressWidth = 39
  let clock: any MachineClock = StoppedClock()
  var localInterrupts: any LocalInterrupts { interrupts }
  let doorbells: any Doorbells = NoDoorbells()

  func makeProcessors(board: Board) throws(StartError) -> any Processors {
    throw .system(SystemError("CPU", code: 38))
  }
}

private final class StoppedClock: MachineClock {
  var now: UInt64 { 0 }
  func makeTimer() -> any OneShotTimer { StoppedTimer() }
}

private final class StoppedTimer: OneShotTimer {
  func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {}
}

private final class NoDoorbells: Doorbells {
  func attach(_ event: Int32, toDoorbell address: UInt64) -> Bool { false }
  func detach(_ event: Int32, fromDoorbell address: UInt64) {}
}
