import Hardware
@testable import PCI
import TestSupport
import Testing

/// A root complex with two ports and a function below each, as software sees them.
@Suite struct RootPortTests {
  private let board = TestBoard()
  private let root = Bus(number: 0)
  private let routes: BusRoutes
  private let ports: [RootPort]
  private let functions: [Function]
  private let models: [RecordingModel]
  private let access: EnhancedConfigurationAccess

  /// Registers of the ports.
  private enum Register {
    static let buses = 0x18
    static let ioWindow = 0x1c
    static let memoryWindow = 0x20
    static let prefetchableWindow = 0x24
    static let prefetchableBaseUpper = 0x28
    static let prefetchableLimitUpper = 0x2c
    static let bridgeControl = 0x3e
  }

  init() throws {
    let routes = BusRoutes(root: root)
    self.routes = routes
    access = EnhancedConfigurationAccess(target: ConfigurationTarget(routes))
    var ports: [RootPort] = []
    var functions: [Function] = []
    var models: [RecordingModel] = []
    for device in [2, 3] as [UInt8] {
      let port = RootPort(
        ExpressPort(portNumber: device, slotNumber: UInt16(device) + 5), environment: board.environment,
        address: RequesterID(bus: 0, device: device, function: 0), routes: routes)
      try root.add(port.function)
      ports.append(port)
      let environment = board.environment.below(port)
      var description = FunctionDescription.everything
      description.expressType = environment.endpointType
      let function = Function(
        description, at: RequesterID(bus: 0, device: 0, function: 0), environment: environment)
      let model = RecordingModel()
      function.install(model)
      function.connect(interruptLine: board.line)
      try port.bus.add(function)
      functions.append(function)
      models.append(model)
    }
    self.ports = ports
    self.functions = functions
    self.models = models
  }

  private func read(_ bus: UInt8, _ device: UInt8, _ offset: Int, function: UInt8 = 0) -> UInt32 {
    let id = RequesterID(bus: bus, device: device, function: function)
    return UInt32(access.read(offset: UInt64(id.rawValue) << 12 | UInt64(offset), width: .doubleword))
  }

  private func number(_ port: Int, secondary: UInt8, subordinate: UInt8) {
    ports[port].function.write32(Register.buses, UInt32(secondary) << 8 | UInt32(subordinate) << 16)
  }

  private var identity: UInt32 { functions[0].read32(0) }

  @Test func `no bus is behind a port until software numbers it`() {
    for bus in 1...UInt8.max { #expect(read(bus, 0, 0) == .max) }
    #expect(ports[0].function.read8(0x0e) == 1)
    #expect(ports[0].function.read32(0x08) >> 8 == 0x060400)
  }

  /// Linux enables PASIDs of a function only if each port above it supports end-end prefixes.
  @Test func `a port supports end-end TLP prefixes, has a log for them and forwards none of its peers`() throws {
    let function = ports[0].function
    let express = try #require(function.expressOffset)
    #expect(function.read32(express + 0x24) == 0x0070_0000)
    function.write16(express + 0x28, 0)
    #expect(function.read16(express + 0x28) == 0x8000)
    // Advanced Error Reporting version 2 ends with the TLP Prefix Log, at 0x38.
    #expect(function.read32(0x100) == 0x1482_0001)
    for offset in stride(from: 0x138, to: 0x148, by: 4) {
      function.write32(offset, .max)
      #expect(function.read32(offset) == 0)
    }
    #expect(function.read32(0x148) == 0x0001_000d)
    #expect(function.read16(0x14c) == 0x1d)
  }

  @Test func `configuration requests are routed by the bus numbers that software writes`() {
    number(0, secondary: 1, subordinate: 1)
    number(1, secondary: 9, subordinate: 200)
    #expect(read(1, 0, 0) == identity)
    #expect(read(9, 0, 0) == identity)
    number(0, secondary: 0x40, subordinate: 0x40)
    #expect(read(1, 0, 0) == .max)
    #expect(read(0x40, 0, 0) == identity)
    // A secondary number above the subordinate one, or 0, makes the link unreachable.
    number(0, secondary: 0x41, subordinate: 0x40)
    #expect(read(0x41, 0, 0) == .max)
    number(0, secondary: 0, subordinate: 0xff)
    #expect(read(0, 0, 0) == .max)
  }

  @Test func `only device 0 answers below a port`() {
    number(0, secondary: 1, subordinate: 1)
    for device in 0..<UInt8(32) {
      for function in 0..<UInt8(8) where (device, function) != (0, 0) {
        #expect(read(1, device, 0, function: function) == .max)
      }
    }
  }

  @Test func `if two ports claim a bus number, the first port has the bus`() {
    functions[1].write8(0x3c, 0x55)
    number(0, secondary: 7, subordinate: 7)
    number(1, secondary: 7, subordinate: 7)
    #expect(read(7, 0, 0x3c) & 0xff == 0)
    number(0, secondary: 8, subordinate: 8)
    #expect(read(7, 0, 0x3c) & 0xff == 0x55)
  }

  @Test func `a requester ID has the number of its bus`() {
    number(0, secondary: 5, subordinate: 5)
    #expect(functions[0].requester.id == RequesterID(bus: 5, device: 0, function: 0))
    number(0, secondary: 0xfe, subordinate: 0xff)
    #expect(functions[0].requester.id == RequesterID(bus: 0xfe, device: 0, function: 0))
    #expect(ports[0].function.requester.id == RequesterID(bus: 0, device: 2, function: 0))
  }

  @Test func `renumbering a bus sets its functions' interrupt routes again`() {
    let function = functions[0]
    function.command([.busMasterEnable, .memorySpaceEnable])
    function.write32(EverythingOffset.msi + 4, 0xfee0_0000)
    function.write16(EverythingOffset.msi + 12, 0x41)
    function.write16(EverythingOffset.msi + 2, 1)
    let before = board.router.setCount
    ports[0].function.write32(Register.memoryWindow, 0xc010_c010)
    #expect(board.router.setCount == before)
    number(0, secondary: 5, subordinate: 5)
    #expect(board.router.setCount > before)
  }

  @Test func `requests pass only with bus mastering enabled in the function and the port`() {
    let requester = functions[0].requester
    functions[0].command(.busMasterEnable)
    #expect(!requester.busMasterEnable)
    ports[0].function.command(.busMasterEnable)
    #expect(requester.busMasterEnable)
    // The model is notified, as if its own Command register were written.
    #expect(models[0].take().contains(.configurationWritten(offset: 4, width: .word, value: 4)))
    ports[0].function.command([])
    #expect(!requester.busMasterEnable)
    #expect(!functions[1].requester.busMasterEnable)
  }

  @Test func `a BAR decodes only within an open window of a port with memory space enabled`() {
    let function = functions[0]
    let port = ports[0].function
    function.write32(0x10, 0xc010_0000)
    function.write32(0x18, 0)
    function.write32(0x1c, 0x20)
    function.command([.memorySpaceEnable, .ioSpaceEnable])
    func decodes(_ address: UInt64) -> Bool { board.memoryBus.read(address: address, width: .byte) != nil }
    #expect(!decodes(0xc010_0000))
    // 1 MiB at 0xc0100000; the 64-bit window stays closed.
    port.write32(Register.memoryWindow, 0xc010_c010)
    #expect(!decodes(0xc010_0000))
    port.command(.memorySpaceEnable)
    #expect(decodes(0xc010_0000))
    #expect(!decodes(0x20_0000_0000))
    port.write32(Register.prefetchableWindow, 0xfff0_0000)
    port.write32(Register.prefetchableBaseUpper, 0x20)
    port.write32(Register.prefetchableLimitUpper, 0x20)
    #expect(decodes(0x20_0000_0000))
    // The BAR has 16 MiB and the window has 8: a BAR must lie in the window completely.
    port.write32(Register.prefetchableWindow, 0x0070_0000)
    #expect(!decodes(0x20_0000_0000))
    port.write32(Register.memoryWindow, 0xc010_c020)
    #expect(!decodes(0xc010_0000))
    port.write32(Register.memoryWindow, 0xc010_c010)
    port.command(.ioSpaceEnable)
    #expect(!decodes(0xc010_0000))
  }

  @Test func `an I/O BAR decodes within the I/O window, and with ISA Enable only in the first 256 bytes of each KiB`() {
    functions[0].write32(0x14, 0x2100)
    functions[0].command(.ioSpaceEnable)
    func decodes() -> Bool { board.ioBus.read(address: 0x2100, width: .byte) != nil }
    let port = ports[0].function
    port.command(.ioSpaceEnable)
    #expect(!decodes())
    port.write16(Register.ioWindow, 0x2020)
    #expect(decodes())
    port.write16(Register.bridgeControl, 1 << 2)
    #expect(!decodes())
    functions[0].write32(0x14, 0x2400)
    #expect(board.ioBus.read(address: 0x2400, width: .byte) != nil)
  }

  @Test func `a secondary bus reset resets the device below and stops it from answering`() {
    number(0, secondary: 1, subordinate: 1)
    functions[0].write8(0x3c, 0x77)
    _ = models[0].take()
    let port = ports[0].function
    port.write16(Register.bridgeControl, 1 << 6)
    #expect(models[0].take().contains(.reset))
    #expect(read(1, 0, 0) == .max)
    port.write16(Register.bridgeControl, 1 << 6)
    #expect(!models[0].take().contains(.reset))
    port.write16(Register.bridgeControl, 0)
    #expect(read(1, 0, 0) == identity)
    #expect(read(1, 0, 0x3c) & 0xff == 0)
    #expect(!models[1].take().contains(.reset))
  }

  @Test func `a disabled link is down`() throws {
    number(0, secondary: 1, subordinate: 1)
    let port = ports[0].function
    let express = try #require(capability(0x10, of: port))
    #expect(port.read16(express + 2) == 0x142)
    #expect(port.read32(express + 0x0c) >> 24 == 2)
    #expect(port.read32(express + 0x14) == 7 << 19)
    #expect(port.read16(express + 0x12) == 0x2011)
    #expect(port.read8(express + 0x13) == 0x20)
    #expect(port.read16(express + 0x1a) == 0x40)
    port.write16(express + 0x10, 1 << 4)
    #expect(port.read16(express + 0x12) == 0x0011)
    #expect(read(1, 0, 0) == .max)
    port.write16(express + 0x10, 0)
    #expect(read(1, 0, 0) == identity)
    ports[0].bus.remove(functions[0])
    #expect(port.read16(express + 0x12) == 0x0011)
    #expect(port.read16(express + 0x1a) == 0)
  }

  @Test func `a function below a port is an ordinary endpoint with a link`() throws {
    let express = try #require(capability(0x10, of: functions[0]))
    #expect(functions[0].read16(express + 2) == 0x02)
    #expect(functions[0].read32(express + 0x0c) & 0x3ff == 0x11)
    #expect(functions[0].read16(express + 0x12) == 0x0011)
    #expect(board.environment.endpointType == .rootComplexIntegratedEndpoint)
  }

  @Test func `a reset clears bus numbers and windows`() {
    number(0, secondary: 1, subordinate: 1)
    ports[0].function.write32(Register.memoryWindow, 0xc010_c010)
    ports[0].function.reset()
    #expect(read(1, 0, 0) == .max)
    #expect(ports[0].function.read32(Register.memoryWindow) == 0x0000_fff0)
  }

  @Test func `firmware numbers the buses and opens windows for the devices below`() throws {
    var placement = ResourcePlacement(
      windows: .init(
        io: 0x1000..<0x1_0000, memory32: 0xc000_0000..<0xfec0_0000, memory64: 0x10_0000_0000..<0x20_0000_0000))
    try placement.place(root.all, ports: routes.ports)
    #expect(ports.map { $0.function.read32(Register.buses) } == [0x0001_0100, 0x0002_0200])
    for (index, function) in functions.enumerated() {
      #expect(read(UInt8(index) + 1, 0, 0) == identity)
      for bar in function.description.baseAddressRegisters {
        let bus = bar.space == .io ? board.ioBus : board.memoryBus
        let low = UInt64(function.read32(bar.offset) & (bar.space == .io ? ~3 : ~0xf))
        #expect(low % bar.size == 0)
        #expect(bus.read(address: low, width: .byte) != nil)
        #expect(bus.read(address: low + bar.size - 1, width: .byte) != nil)
      }
      #expect(ports[index].function.read16(StandardOffset.command) == 3)
    }
  }

  @Test func `firmware opens windows for reservations, and closes unused ones`() throws {
    var reservation = RootPort.Reservation()
    reservation.memory = 3 << 20
    reservation.prefetchable = 1 << 32
    reservation.buses = 4
    let routes = BusRoutes(root: Bus(number: 0))
    let port = RootPort(
      ExpressPort(portNumber: 0, slotNumber: 0), reservation: reservation, environment: board.environment,
      address: RequesterID(bus: 0, device: 2, function: 0), routes: routes)
    try routes.root.add(port.function)
    let windows = ResourcePlacement.Windows(
      io: 0x1000..<0x1_0000, memory32: 0xc000_0000..<0xfec0_0000, memory64: 0x10_0000_0000..<0x20_0000_0000)
    var placement = ResourcePlacement(windows: windows)
    try placement.place(routes.root.all, ports: routes.ports)
    #expect(port.function.read32(Register.buses) == 0x0005_0100)
    #expect(port.function.read32(Register.memoryWindow) == 0xc020_c000)
    #expect(port.function.read32(Register.prefetchableBaseUpper) == 0x10)
    #expect(port.function.read32(Register.prefetchableLimitUpper) == 0x10)
    #expect(port.function.read32(Register.prefetchableWindow) == 0xfff1_0001)
    #expect(port.function.read16(Register.ioWindow) == 0x00f0)
    #expect(port.function.read16(StandardOffset.command) == 2)
    reservation.memory = .max
    let greedy = RootPort(
      ExpressPort(portNumber: 0, slotNumber: 1), reservation: reservation, environment: board.environment,
      address: RequesterID(bus: 0, device: 3, function: 0), routes: routes)
    var again = ResourcePlacement(windows: windows)
    #expect(throws: ResourcePlacement.NoRoom.self) { try again.place([], ports: [greedy]) }
  }

  /// Random writes to all registers of a port, with requests in between: nothing traps.
  @Test func `random writes to a port's registers never trap`() {
    var seed: UInt64 = 0x9e37_79b9_7f4a_7c15
    func next() -> UInt64 {
      seed ^= seed << 13
      seed ^= seed >> 7
      seed ^= seed << 17
      return seed
    }
    functions[0].write32(0x10, 0xc010_0000)
    for _ in 0..<20_000 {
      let value = next()
      let port = ports[Int(value & 1)].function
      let offset = Int(value >> 8 & 0x7c)
      port.write32(offset, UInt32(truncatingIfNeeded: value >> 32))
      functions[Int(value & 1)].command(Command(rawValue: UInt16(truncatingIfNeeded: value >> 16) & 7))
      _ = read(UInt8(truncatingIfNeeded: value >> 24), 0, offset)
    }
    for port in ports { port.function.reset() }
    #expect(read(1, 0, 0) == .max)
  }

  private func capability(_ id: UInt8, of function: Function) -> Int? {
    var at = Int(function.read8(0x34))
    while at != 0 {
      if function.read8(at) == id { return at }
      at = Int(function.read8(at + 1))
    }
    return nil
  }
}
