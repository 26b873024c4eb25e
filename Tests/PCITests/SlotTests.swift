import Hardware
import PCI
import Synchronization
import TestSupport
import Testing

/// A port whose slot is plugged and unplugged while software runs, and a stand-in for the board above it.
final class SlotBoard {
  let board = TestBoard()
  let root = Bus(number: 0)
  let port: RootPort
  let access: EnhancedConfigurationAccess
  let express: Int
  private let ejects = SharedInteger()
  private let refusals = SharedInteger()
  private var function: Function?
  private var nextDevice: UInt16 = 0x1000
  private var takenEjects = 0

  init(_ way: HotplugWay?) throws {
    let routes = BusRoutes(root: root)
    access = EnhancedConfigurationAccess(target: ConfigurationTarget(routes))
    port = RootPort(
      ExpressPort(portNumber: 2, slotNumber: 7), hotplug: way, environment: board.environment,
      address: RequesterID(bus: 0, device: 2, function: 0), routes: routes,
      onEject: { [ejects] in ejects.increment() }, onRefusal: { [refusals] in refusals.increment() })
    port.function.connect(interruptLine: board.line)
    try root.add(port.function)
    var at = Int(port.function.read8(0x34))
    while at != 0, port.function.read8(at) != 0x10 { at = Int(port.function.read8(at + 1)) }
    express = try #require(at == 0 ? nil : at)
  }

  var ejectCount: Int { ejects.value }
  var refusalCount: Int { refusals.value }
  var isOccupied: Bool { function != nil }
  /// Whether an ejected device is still in the slot.
  var isEjecting: Bool { ejects.value > takenEjects }
  /// The identity register of the device in the slot.
  var identity: UInt32? { function?.read32(0) }

  func makeFunction(number: UInt8 = 0) -> (Function, RecordingModel) {
    var description = FunctionDescription.everything
    description.deviceID = nextDevice
    description.expressType = .endpoint
    nextDevice += 1
    let function = Function(
      description, at: RequesterID(bus: 0, device: 0, function: number), environment: board.environment.below(port))
    let model = RecordingModel()
    function.install(model)
    return (function, model)
  }

  /// Adds a device that is present when the machine starts.
  @discardableResult
  func coldPlug() -> RecordingModel {
    let (function, model) = makeFunction()
    do { try port.bus.add(function) } catch { Issue.record("the slot has a device already") }
    self.function = function
    port.function.reset()
    return model
  }

  @discardableResult
  func insert() -> RecordingModel {
    let (function, model) = makeFunction()
    do { try port.bus.add(function) } catch { Issue.record("the slot has a device already") }
    self.function = function
    port.inserted()
    return model
  }

  func pullOut() {
    guard let function else { return }
    port.bus.remove(function)
    function.revoke()
    self.function = nil
    port.emptied()
  }

  /// Removes the device that software has ejected.
  func takeEjected() {
    guard ejects.value > takenEjects else { return }
    #expect(ejects.value == takenEjects + 1 && function != nil, "ejected without a device")
    takenEjects = ejects.value
    pullOut()
  }

  func requestRemoval() -> RemovalAnswer {
    let answer = port.requestRemoval()
    if answer == .unpowered { pullOut() }
    return answer
  }

  func makeDriver() -> HotplugDriver {
    let driver = HotplugDriver(port, access: access, router: board.router, express: express)
    driver.atMoment = { [self] _ in takeEjected() }
    return driver
  }

  var control: UInt16 {
    get { port.function.read16(express + 0x18) }
    set { port.function.write16(express + 0x18, newValue) }
  }
  var status: UInt16 {
    get { port.function.read16(express + 0x1a) }
    set { port.function.write16(express + 0x1a, newValue) }
  }
  var linkStatus: UInt16 { port.function.read16(express + 0x12) }
}

@Suite struct SlotTests {
  /// Returns Slot Capabilities, then Slot Control and Status.
  private func registers(_ slot: SlotBoard) -> [UInt32] {
    [slot.port.function.read32(slot.express + 0x14), slot.port.function.read32(slot.express + 0x18)]
  }

  @Test func `a native slot has a button, indicators and a power controller, and is off while empty`() throws {
    let slot = try SlotBoard(.native)
    #expect(registers(slot) == [7 << 19 | 0x5b, 0x0000_07c0])
    #expect(slot.port.function.read32(slot.express + 0x0c) == 0x0250_0011)
    #expect(slot.linkStatus == 0x0011)
    slot.coldPlug()
    #expect(registers(slot) == [7 << 19 | 0x5b, 0x0040_01c0])
    #expect(slot.linkStatus == 0x2011)
  }

  @Test func `a slot with ACPI hotplug is hot-plug capable and has no commands`() throws {
    let slot = try SlotBoard(.acpi)
    #expect(registers(slot) == [7 << 19 | 1 << 18 | 0x40, 0])
    slot.insert()
    #expect(slot.status & 0x40 != 0)
    #expect(slot.linkStatus == 0x2011)
    slot.control = 0xffff
    #expect(slot.control == 0x1028)
    #expect(slot.status & 0x10 == 0)
    #expect(slot.linkStatus == 0x2011)
    slot.pullOut()
    #expect(slot.status & 0x40 == 0)
    #expect(slot.linkStatus == 0x0011)
    slot.coldPlug()
    #expect(registers(slot) == [7 << 19 | 1 << 18 | 0x40, 0x0040_0000])
  }

  @Test func `a slot without hotplug has no slot elements`() throws {
    let slot = try SlotBoard(nil)
    slot.coldPlug()
    slot.control = 0xffff
    slot.status = 0xffff
    #expect(registers(slot) == [7 << 19, 0x0040_0000])
  }

  @Test(arguments: [AccessWidth.byte, .word, .doubleword])
  func `every write of Slot Control completes a command, and none of Slot Status does`(width: AccessWidth) throws {
    let slot = try SlotBoard(.native)
    let function = slot.port.function
    for offset in stride(from: 0, to: 2, by: min(width.rawValue, 2)) {
      let own = function.readConfiguration(offset: slot.express + 0x18 + offset, width: width)
      function.writeConfiguration(offset: slot.express + 0x18 + offset, width: width, value: own)
      #expect(slot.status == 0x10)
      slot.status = 0x10
      #expect(slot.status == 0)
    }
    #expect(slot.control == 0x07c0)
    function.write32(slot.express + 0x14, .max)
    function.write32(slot.express + 0x10, .max)
    #expect(slot.status == 0)
    // After one write to both registers, Command Completed stays set.
    function.write32(slot.express + 0x18, 0xffff_07c0)
    #expect(slot.status == 0x10)
  }

  @Test func `only bits of existing slot elements are writable`() throws {
    let slot = try SlotBoard(.native)
    slot.control = 0xffff
    #expect(slot.control == 0x17f9)
    slot.control = 0
    #expect(slot.control == 0)
    slot.insert()
    #expect(slot.status == 0x0158)
    slot.status = 0xfee7
    #expect(slot.status == 0x0158)
    slot.status = 0x0100
    #expect(slot.status == 0x0058)
    slot.status = 0xffff
    #expect(slot.status == 0x0040)
  }

  @Test func `the first enabled event sends a message, and an enabled event that is set asserts the interrupt line`()
    throws
  {
    let slot = try SlotBoard(.native)
    slot.port.function.write32(0x44, 0xfee0_0000)
    slot.port.function.write16(0x4c, 0x51)
    slot.port.function.command(.busMasterEnable)
    func sent() -> Int { slot.board.router.deliveries.count }
    // The link event is enabled. Without Hot-Plug Interrupt Enable, it does not interrupt.
    slot.control = 0x17c0
    slot.status = 0xffff
    slot.insert()
    #expect(!slot.board.line.asserted)
    slot.control = 0x17e0
    #expect(slot.board.line.asserted)
    slot.status = 0x0100
    #expect(!slot.board.line.asserted)
    slot.control = 0x17f0
    #expect(slot.board.line.asserted)
    slot.control = 0x07e0
    #expect(!slot.board.line.asserted)
    slot.port.function.command([.busMasterEnable, .interruptDisable])
    slot.control = 0x07f0
    #expect(!slot.board.line.asserted)
    slot.control = 0x07e0
    // With MSI enabled.
    slot.port.function.write16(0x42, 1)
    #expect(sent() == 0)
    slot.control = 0x17f8
    #expect(sent() == 1)
    slot.control = 0x13f8
    #expect(sent() == 1)
    slot.status = 0x0110
    #expect(sent() == 1)
    slot.status = 0x0008
    #expect(slot.status == 0x40)
    slot.pullOut()
    #expect(sent() == 2)
    slot.insert()
    #expect(sent() == 2)
    slot.status = 0xffff
    slot.control = 0x13f8
    #expect(sent() == 3)
  }

  @Test func `a device in a slot without power does not answer, and has its reset values when power is back`() throws {
    let slot = try SlotBoard(.native)
    let model = slot.coldPlug()
    slot.port.function.write32(0x18, 0x0001_0100)
    slot.port.function.write32(0x20, 0xc010_c010)
    slot.port.function.command(.memorySpaceEnable)
    func read(_ offset: UInt64) -> UInt64 { slot.access.read(offset: 1 << 20 | offset, width: .doubleword) }
    slot.access.write(offset: 1 << 20 | 0x10, width: .doubleword, value: 0xc010_0000)
    slot.access.write(offset: 1 << 20 | 0x04, width: .word, value: 2)
    #expect(slot.board.memoryBus.read(address: 0xc010_0000, width: .byte) != nil)
    _ = model.take()
    // The indicator stays on, so this is no eject.
    slot.control = 0x05c0
    #expect(read(0) == 0xffff_ffff)
    #expect(slot.board.memoryBus.read(address: 0xc010_0000, width: .byte) == nil)
    #expect(slot.linkStatus == 0x0011)
    #expect(slot.status == 0x0150)
    #expect(slot.ejectCount == 0)
    slot.status = 0xffff
    slot.control = 0x01c0
    #expect(read(0) == UInt64(try #require(slot.identity)))
    #expect(read(0x10) == 0)
    #expect(model.take().contains(.reset))
    #expect(slot.linkStatus == 0x2011)
    #expect(slot.status == 0x0150)
  }

  @Test func `disabling or resetting a link sets its state-changed bit`() throws {
    let slot = try SlotBoard(.native)
    slot.coldPlug()
    slot.port.function.write16(slot.express + 0x10, 0x10)
    #expect(slot.status == 0x0140)
    slot.status = 0xffff
    slot.port.function.write16(slot.express + 0x10, 0)
    #expect(slot.status == 0x0140)
    slot.status = 0xffff
    slot.port.function.write16(0x3e, 0x40)
    #expect(slot.status == 0x0140)
    #expect(slot.linkStatus == 0x0011)
  }

  @Test(arguments: [[UInt16](arrayLiteral: 0x05c0, 0x07c0), [0x03c0, 0x07c0], [0x07c0]])
  func `power and indicator off, in any order, ejects the device once`(writes: [UInt16]) throws {
    let slot = try SlotBoard(.native)
    slot.coldPlug()
    for (index, value) in writes.enumerated() {
      #expect(slot.ejectCount == 0)
      slot.control = value
      #expect(slot.ejectCount == (index == writes.count - 1 ? 1 : 0))
    }
    slot.control = 0x01c0
    #expect(slot.linkStatus == 0x0011)
    slot.control = 0x07c0
    #expect(slot.ejectCount == 1)
    slot.pullOut()
    slot.control = 0x01c0
    slot.control = 0x07c0
    #expect(slot.ejectCount == 1)
  }

  @Test func `a reset keeps the device in the slot and discards pending requests`() throws {
    let slot = try SlotBoard(.native)
    slot.insert()
    slot.control = 0x12f9
    #expect(slot.port.requestRemoval() == .deferred)
    slot.port.function.reset()
    #expect(registers(slot)[1] == 0x0040_01c0)
    #expect(slot.linkStatus == 0x2011)
    slot.control = 0x02c0
    slot.control = 0x01c0
    #expect(slot.status == 0x0050)
    #expect(slot.port.requestRemoval() == .asked)
    #expect(slot.status == 0x0051)
    slot.port.function.reset()
    #expect(slot.status == 0x0040)
    slot.pullOut()
    slot.port.function.reset()
    #expect(registers(slot)[1] == 0x0000_07c0)
    #expect(!slot.board.line.asserted)
  }

  @Test func `firmware turns a full slot on`() throws {
    let slot = try SlotBoard(.native)
    let (function, _) = slot.makeFunction()
    try slot.port.bus.add(function)
    var placement = ResourcePlacement(
      windows: .init(
        io: 0x1000..<0x1_0000, memory32: 0xc000_0000..<0xfec0_0000, memory64: 0x10_0000_0000..<0x20_0000_0000))
    try placement.place(slot.root.all, ports: [slot.port])
    #expect(registers(slot)[1] == 0x0040_01c0)
    #expect(slot.linkStatus == 0x2011)
  }

  @Test func `functions above 0 below a port answer only while function 0 is there`() throws {
    let slot = try SlotBoard(.native)
    slot.port.function.write32(0x18, 0x0001_0100)
    func read(_ number: UInt64) -> UInt64 { slot.access.read(offset: 1 << 20 | number << 12, width: .doubleword) }
    slot.control = 0x01c0
    let (second, _) = slot.makeFunction(number: 3)
    try slot.port.bus.add(second)
    #expect(read(3) == 0xffff_ffff)
    slot.insert()
    #expect(read(3) == UInt64(second.read32(0)))
    slot.pullOut()
    #expect(read(3) == 0xffff_ffff)
    #expect(slot.status & 0x40 == 0)
  }
}
