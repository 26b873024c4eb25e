import Hardware
import Linux
import PCI
import TestSupport
import Testing
import VTd

@testable import Machine

/// Tests a board with two root ports, a device below each, and a unit that covers one of the ports.
@Suite struct TopologyTests {
  private let board: Board
  private let units: [UnitPlacement]
  private let configuration: MachineConfiguration

  private static func edu(_ id: String, bus: String = "pcie.0") throws -> EduOptions {
    var options = EduOptions()
    options.id = try Identifier(text: id)
    options.function.bus = bus
    options.mask = .max
    return options
  }

  private static func port(_ id: String, at device: UInt8, slot: UInt16) throws -> PCIERootPortOptions {
    var options = PCIERootPortOptions()
    options.id = try Identifier(text: id)
    options.slot = slot
    options.function.address = RequesterID(bus: 0, device: device, function: 0)
    return options
  }

  private static func unit(_ devices: String?) throws -> IntelIOMMUOptions {
    var options = IntelIOMMUOptions()
    options.devices = try devices.map { try DeviceNames(text: $0) }
    options.unit.scalableMode = true
    options.unit.firstStage = true
    return options
  }

  private static func configuration(_ devices: [any DeviceOptions]) -> MachineConfiguration {
    var configuration = MachineConfiguration()
    configuration.devices = devices
    return configuration
  }

  init() throws {
    configuration = Self.configuration([
      try Self.unit(nil), try Self.unit("rp1"), try Self.port("rp0", at: 4, slot: 1),
      try Self.port("rp1", at: 9, slot: 2),
      try Self.edu("a", bus: "rp0"), try Self.edu("b", bus: "rp1"), try Self.edu("c"),
    ])
    units = try configuration.unitPlacement(configuration.devicePlacement())
    let size: UInt64 = 64 << 20
    let accelerator = QTestAccelerator(localInterrupts: RecordingInterrupts())
    board = try Board(
      memory: GuestMemory(size: size, lowLimit: size), accelerator: accelerator,
      layout: #require(BoardLayout(memorySize: size, physicalAddressWidth: accelerator.physicalAddressWidth)),
      processorCount: 1, units: units, serialOutput: nil, events: EventQueue(),
      devices: DeviceTree(try DeviceAdmission(configuration)))
    for device in configuration.devices { try board.add(device, with: configuration) }
    try board.placeResources()
  }

  private func read(_ bus: UInt8, _ device: UInt8, _ offset: UInt64, _ width: Int = 4) -> UInt64 {
    let id = RequesterID(bus: bus, device: device, function: 0)
    return board.readMemory(BoardLayout.configurationAccess + UInt64(id.rawValue) << 12 + offset, width)
  }

  private func write(_ bus: UInt8, _ device: UInt8, _ offset: UInt64, _ value: UInt64, _ width: Int = 4) {
    let id = RequesterID(bus: bus, device: device, function: 0)
    board.writeMemory(BoardLayout.configurationAccess + UInt64(id.rawValue) << 12 + offset, width, value)
  }

  @Test func `buses, windows, BARs and interrupt lines are set up at the start and after a reset`() throws {
    for _ in 0..<2 {
      #expect(read(0, 4, 0x18) == 0x0001_0100)
      #expect(read(0, 9, 0x18) == 0x0002_0200)
      for bus in [1, 2] as [UInt8] {
        #expect(read(bus, 0, 0) == 0x11e8_1234)
        #expect(board.readMemory(read(bus, 0, 0x10), 4) == 0x0100_00ed)
      }
      // INTA# of device 0 below a port is routed as INTA# of the port.
      #expect(read(1, 0, 0x3c, 1) == 20)
      #expect(read(2, 0, 0x3c, 1) == 17)
      board.reset()
      #expect(read(1, 0, 0) == 0xffff_ffff)
      try board.placeResources()
    }
  }

  @Test func `pins below a port are swizzled by the device's number`() {
    let port = RequesterID(bus: 0, device: 4, function: 0)
    let place = PCIPlace(RequesterID(bus: 7, device: 2, function: 0), below: port)
    #expect((1...4).map { BoardLayout.pin(of: place, interruptPin: $0) } == [22, 23, 20, 21])
  }

  @Test func `a DRHD scope names a port with everything below it, or a device below a port by its path`() throws {
    func scopes(_ devices: String) throws -> [DMARemapping.DeviceScope] {
      let wanted = Self.configuration(
        [try Self.unit(devices)] + configuration.devices.dropFirst(2).map { $0 })
      return DMARemapping(try wanted.unitPlacement(wanted.devicePlacement())).units[0].scopes
    }
    #expect(
      try scopes("rp1") == [.init(type: .subHierarchy, startBus: 0, path: [.init(device: 9, function: 0)])])
    #expect(
      try scopes("04.0") == [.init(type: .subHierarchy, startBus: 0, path: [.init(device: 4, function: 0)])])
    #expect(
      try scopes("b+c") == [
        .init(type: .endpoint, startBus: 0, path: [.init(device: 1, function: 0)]),
        .init(type: .endpoint, startBus: 0, path: [.init(device: 9, function: 0), .init(device: 0, function: 0)]),
      ])
  }

  @Test func `two units cannot share a port and a device below it`() throws {
    for (first, second) in [("rp1", "b"), ("b", "rp1")] {
      let wanted = Self.configuration(
        [try Self.unit(first), try Self.unit(second)] + configuration.devices.dropFirst(2).map { $0 })
      #expect(throws: ConfigurationError.device(index: 1, .deviceHasUnit(second, nil))) {
        try wanted.unitPlacement(wanted.devicePlacement())
      }
    }
  }

  @Test func `a unit still finds a function by its path after the bus numbers change`() throws {
    let below = try #require(board.devices.all.first { $0.id?.text == "b" }?.place)
    #expect(below.port?.device == 9)
    func owners() -> [[String?]] { board.inspection.states().map { $0.functions.map(\.id) } }
    #expect(owners() == [[nil, "c", "rp0", nil, "a"], ["rp1", "b"]])
    // The two buses change their numbers.
    write(0, 4, 0x18, 0x0008_0800)
    write(0, 9, 0x18, 0x0001_0100)
    #expect(owners() == [[nil, "c", "rp0", nil, "a"], ["rp1", "b"]])
    #expect(board.inspection.states()[1].functions.map(\.address.bus) == [0, 1])
    let report = try board.inspection.translation(of: "01:00.0", pasid: nil, address: 0, access: .read)
    #expect(report.unitName == "iommu1" && report.function?.id == "b")
  }

  @Test func `requests carry the current number of their bus`() throws {
    // In the second unit's tables, bus 2 device 0 maps 0x1000 to 0x9000, and bus 0x20 device 0 maps it to 0xa000.
    func store(_ value: UInt64, _ address: UInt64) { _ = board.memory.storeUInt64(value, at: address) }
    for (bus, base, target) in [(2, 0x20_0000, 0x9000), (0x20, 0x30_0000, 0xa000)] as [(UInt64, UInt64, UInt64)] {
      store(base | 1, 0x10_0000 + bus * 16)
      store((base + 0x1000) | 1, base)
      store((base + 0x2000) | 1, base + 0x1000)
      store(0x41, base + 0x2000)
      store(bus, base + 0x2008)
      store(base + 0x3000, base + 0x2010)
      for level in 0..<3 as Range<UInt64> {
        store((base + 0x4000 + level * 0x1000) | 0x27, base + 0x3000 + level * 0x1000)
      }
      store(target | 0x67, base + 0x6008)
    }
    board.writeMemory(0xfed9_1020, 8, 0x10_0400)
    board.writeMemory(0xfed9_1018, 4, 1 << 30)
    board.writeMemory(0xfed9_1018, 4, 1 << 31)
    store(0x1111, 0x9000)
    store(0x2222, 0xa000)
    let below = try #require(board.busRoutes.ports[1].bus.function(at: 0))
    write(0, 9, 4, 6, 2)
    write(2, 0, 4, 6, 2)
    let port = below.environment.makePort()
    #expect(try port.loadUInt64(at: 0x1000) == 0x1111)
    write(0, 9, 0x18, 0x0020_2000)
    #expect(try port.loadUInt64(at: 0x1000) == 0x2222)
    // Nothing passes without the port's Bus Master Enable.
    write(0, 9, 4, 2, 2)
    #expect(throws: DMAError.self) { try port.loadUInt64(at: 0x1000) }
  }

  @Test func `the last bus depends on the configured ports, and a bus above 255 is refused`() throws {
    #expect(configuration.lastBus == 2)
    var wide = try Self.port("rp0", at: 4, slot: 1)
    wide.reservation.buses = 254
    var wanted = Self.configuration([wide])
    #expect(wanted.lastBus == 255)
    wanted.devices.append(try Self.port("rp1", at: 5, slot: 2))
    wanted.accelerator = .qtest
    #expect(throws: ConfigurationError.device(index: 1, .tooManyBuses(count: 256, highest: 255))) { try wanted.check() }
  }

  @Test func `unplugging a device below a port frees its place`() throws {
    let device = try #require(board.devices.all.first { $0.id?.text == "b" })
    let address = read(2, 0, 0x10)
    #expect(board.unplug(device.identity) != nil)
    #expect(read(2, 0, 0) == 0xffff_ffff)
    #expect(board.readMemory(address, 4) == 0xffff_ffff)
    let problem = #expect(throws: StartError.self) {
      try board.add(try Self.edu("d", bus: "rp7"), with: configuration)
    }
    guard case .refused(.unknownBus("rp7", known: ["pcie.0", "rp0", "rp1"]))? = problem else {
      Issue.record("\(String(describing: problem))")
      return
    }
    #expect(try board.add(try Self.edu("d", bus: "rp1"), with: configuration).place == device.place)
    #expect(read(2, 0, 0) == 0x11e8_1234)
  }
}
