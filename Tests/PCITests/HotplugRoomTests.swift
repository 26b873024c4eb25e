import Hardware
import PCI
import TestSupport
import Testing

/// The address space that firmware reserves below ports for devices that are plugged later.
@Suite struct HotplugRoomTests {
  private let board = TestBoard()
  private let routes = BusRoutes(root: Bus(number: 0))

  private enum Register {
    static let ioWindow = 0x1c
    static let memoryWindow = 0x20
    static let prefetchableWindow = 0x24
    static let prefetchableBaseUpper = 0x28
  }

  /// Returns windows of these sizes, in bytes; `memory32` is below 4 GiB.
  private static func windows(memory32: UInt64, memory64: UInt64 = 1 << 36) -> ResourcePlacement.Windows {
    .init(
      io: 0x1000..<0x1_0000, memory32: 0xc000_0000..<0xc000_0000 + memory32,
      memory64: 0x10_0000_0000..<0x10_0000_0000 + memory64)
  }

  private func makePort(
    _ number: Int, _ way: HotplugWay? = .native, reservation: RootPort.Reservation = RootPort.Reservation()
  ) throws -> RootPort {
    let port = RootPort(
      ExpressPort(portNumber: UInt8(number), slotNumber: UInt16(number)), hotplug: way, reservation: reservation,
      environment: board.environment,
      address: RequesterID(rawValue: UInt16(8 + number)), routes: routes)
    try routes.root.add(port.function)
    return port
  }

  private func plug(_ port: RootPort, _ bars: [BaseAddressRegister]) throws -> Function {
    var description = FunctionDescription.plain
    description.baseAddressRegisters = bars
    let function = Function(
      description, at: RequesterID(bus: 0, device: 0, function: 0), environment: board.environment.below(port))
    try port.bus.add(function)
    return function
  }

  private func place(_ windows: ResourcePlacement.Windows) throws {
    var placement = ResourcePlacement(windows: windows)
    try placement.place(routes.root.all, ports: routes.ports)
  }

  /// Returns the window's size in MiB; 0 for a closed window.
  private func size(_ port: RootPort, _ register: Int) -> Int {
    let value = port.function.read32(register)
    let base = Int(value & 0xfff0) >> 4
    let limit = Int(value >> 16 & 0xfff0) >> 4
    return max(limit - base + 1, 0)
  }

  @Test(arguments: [HotplugWay.native, .acpi])
  func `an empty port gets 2 MiB of each kind of memory, and no I/O`(way: HotplugWay) throws {
    let port = try makePort(0, way)
    let fixed = try makePort(1, nil)
    try place(Self.windows(memory32: 64 << 20))
    #expect(port.function.read32(Register.memoryWindow) == 0xc010_c000)
    // The prefetchable window is above 4 GiB, where there is enough space.
    #expect(port.function.read32(Register.prefetchableWindow) == 0x0011_0001)
    #expect(port.function.read32(Register.prefetchableBaseUpper) == 0x10)
    #expect(port.function.read16(Register.ioWindow) == 0x00f0)
    #expect(port.function.read16(StandardOffset.command) == 2)
    #expect(fixed.function.read32(Register.memoryWindow) == 0x0000_fff0)
    #expect(fixed.function.read16(StandardOffset.command) == 0)
  }

  @Test func `an explicit reservation replaces the default, even if it is zero`() throws {
    var reservation = RootPort.Reservation()
    reservation.io = 0x100
    reservation.memory = 0
    reservation.prefetchable = 5 << 20
    let port = try makePort(0, reservation: reservation)
    try place(Self.windows(memory32: 64 << 20))
    #expect(port.function.read16(Register.ioWindow) == 0x1010)
    #expect(port.function.read32(Register.memoryWindow) == 0x0000_fff0)
    #expect(size(port, Register.prefetchableWindow) == 5)
  }

  @Test func `a port with a device also gets at least the default, for a device plugged later`() throws {
    let small = try makePort(0)
    let large = try makePort(1)
    _ = try plug(small, [BaseAddressRegister(index: 0, space: .memory32, size: 0x1000)])
    _ = try plug(
      large, [BaseAddressRegister(index: 0, space: .memory64, size: 16 << 20, prefetchable: true)])
    try place(Self.windows(memory32: 64 << 20))
    #expect(size(small, Register.memoryWindow) == 2)
    #expect(size(small, Register.prefetchableWindow) == 2)
    #expect(size(large, Register.memoryWindow) == 2)
    #expect(size(large, Register.prefetchableWindow) == 16)
  }

  @Test func `on a full bus every port gets its reservation below 4 GiB`() throws {
    let ports = try (0..<240).map { try makePort($0) }
    try place(Self.windows(memory32: 0xfec0_0000 - 0xc000_0000))
    #expect(ports.allSatisfy { size($0, Register.memoryWindow) == 2 })
    #expect(ports.allSatisfy { size($0, Register.prefetchableWindow) == 2 })
  }

  @Test func `if space below 4 GiB is short, each port gets less`() throws {
    let ports = try (0..<8).map { try makePort($0) }
    try place(Self.windows(memory32: 9 << 20))
    #expect(ports.map { size($0, Register.memoryWindow) } == Array(repeating: 1, count: 8))
    #expect(ports.map { size($0, Register.prefetchableWindow) } == Array(repeating: 2, count: 8))
  }

  @Test func `if space is very short, existing devices come first, then the first ports`() throws {
    let ports = try (0..<8).map { try makePort($0) }
    let device = try plug(ports[7], [BaseAddressRegister(index: 0, space: .memory32, size: 4 << 20)])
    try place(Self.windows(memory32: 7 << 20))
    #expect(ports.map { size($0, Register.memoryWindow) } == [1, 1, 1, 0, 0, 0, 0, 4])
    #expect(ports.map { size($0, Register.prefetchableWindow) } == Array(repeating: 2, count: 8))
    #expect(device.read32(0x10) == 0xc000_0000)
    #expect(board.memoryBus.read(address: 0xc000_0000, width: .byte) != nil)
  }

  @Test func `no space for reservations is no error, but no space for a device is`() throws {
    let port = try makePort(0)
    try place(Self.windows(memory32: 0, memory64: 0))
    #expect(size(port, Register.memoryWindow) == 0)
    #expect(size(port, Register.prefetchableWindow) == 0)
    _ = try plug(port, [BaseAddressRegister(index: 0, space: .memory32, size: 0x1000)])
    #expect(throws: ResourcePlacement.NoRoom.self) { try place(Self.windows(memory32: 0, memory64: 0)) }
  }
}
