import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import PCI
import Synchronization
import TestSupport
import Testing
@testable import VFIO

@testable import Passthrough

/// Checks the effects of a guest's accesses to a passed-through function, on the fake kernel.
@Suite struct VFIOPCITests {
  private let kernel = FakeKernel()
  private let router = EventRouter()
  private let memory = RecordingDeviceMemory()
  private let memoryBus = AddressBus()

  init() {
    kernel.state.withLock { state in
      // A 16 KiB BAR with the MSI-X table in its third page, pending bits in the fourth; a BAR of I/O ports; the
      // configuration space.
      var image = FakeKernel.endpointImage
      image.store(UInt32(0x4), at: 0x18)
      image.store(UInt32(0x1), at: 0x20)
      // FLR.
      image[0x87] = 0x10
      state.devices[0].regions[2] = (0x4000, 0b111, [])
      state.devices[0].regions[4] = (0x20, 0b011, [])
      state.devices[0].regions[7] = (4096, 0b011, [])
      state.devices[0].contents[7] = image
      state.devices[0].contents[2] = [UInt8](repeating: 0x5a, count: 0x4000)
    }
  }

  private func environment() -> PCIEnvironment {
    let ram = HeapMemory(size: 0x1000)
    return PCIEnvironment(
      memoryBus: memoryBus, ioBus: AddressBus(), memory: ram, remapper: DirectRemapper(memory: ram),
      interrupts: router, workers: InlineWorkerSource(), makeParking: { SemaphoreParking() })
  }

  private func make(
    below port: RootPort? = nil, report: @escaping @Sendable (PassthroughNotice.Reason) -> Void = { _ in }
  ) throws -> VFIOPCI {
    let device = try VFIODevice(
      file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: IOMMUFD(calls: kernel))
    return try VFIOPCI(
      device, environment: environment().below(port), surroundings: .init(deviceMemory: memory, report: report),
      address: RequesterID(bus: 0, device: port == nil ? 5 : 0, function: 0))
  }

  @Test func `refusing accesses makes no host call, and a revocation first ends the device's requests`() throws {
    let model = try make()
    model.function.writeConfiguration(offset: 4, width: .word, value: 6)
    _ = takeWrites()
    model.function.refuse()
    #expect(takeWrites() == [])
    model.function.revoke()
    #expect(takeWrites().first == "7:4=0003")
  }

  @Test func `ended requests stay ended, whatever the guest writes later`() throws {
    let model = try make()
    let function = model.function
    function.writeConfiguration(offset: 4, width: .word, value: 6)
    #expect(takeWrites().last == "7:4=0007")
    model.endRequests()
    #expect(takeWrites() == ["7:4=0003"])
    // Accesses that were in flight, and a reset of the bus for another function.
    function.writeConfiguration(offset: 4, width: .word, value: 0)
    function.writeConfiguration(offset: 4, width: .word, value: 6)
    model.quiesce()
    model.settle()
    #expect(takeWrites().allSatisfy { !$0.hasPrefix("7:4=") || $0 == "7:4=0003" })
    model.function.revoke()
  }

  /// Returns the writes to the device since the last call: region, offset and value.
  private func takeWrites() -> [String] {
    kernel.state.withLock { state in
      defer { state.devices[0].writes = [] }
      return state.devices[0].writes.map { write in
        "\(write.region):\(String(write.offset, radix: 16))="
          + write.bytes.reversed().map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
      }
    }
  }

  private func takeInterruptSets() -> [String] {
    kernel.state.withLock { state in
      defer { state.interruptSets = [] }
      return state.interruptSets.map { "\($0.index) from \($0.start) \($0.events.isEmpty ? "off" : "\($0.events)")" }
    }
  }

  @Test("the guest sees the host's function")
  func theGuestSeesTheHostsFunction() throws {
    let model = try make()
    let function = model.function
    #expect(function.readConfiguration(offset: 0, width: .doubleword) == 0x1042_1af4)
    #expect(function.readConfiguration(offset: 8, width: .doubleword) == 0x0100_0001)
    #expect(function.readConfiguration(offset: 0x18, width: .doubleword) == 4)
    function.writeConfiguration(offset: 0x18, width: .doubleword, value: 0xffff_ffff)
    #expect(function.readConfiguration(offset: 0x18, width: .doubleword) == 0xffff_c004)
    #expect(function.readConfiguration(offset: 0x70, width: .doubleword) == 0x0003_8011)
    #expect(function.readConfiguration(offset: 0x74, width: .doubleword) == 0x2002)
    #expect(function.readConfiguration(offset: 0x78, width: .doubleword) == 0x3002)
    // The device's current value, not the one at the start.
    kernel.state.withLock { $0.devices[0].contents[7]?[0x8a] = 0x99 }
    #expect(function.readConfiguration(offset: 0x8a, width: .byte) == 0x99)
    model.function.revoke()
  }

  @Test("permitted writes reach the device, each as one access")
  func writesReachTheDeviceWhereTheyMay() throws {
    let model = try make()
    let function = model.function
    _ = takeWrites()
    function.writeConfiguration(offset: 0xc4, width: .doubleword, value: 0x1234_5678)
    #expect(takeWrites() == ["7:c4=12345678"], "one access stays one")
    function.writeConfiguration(offset: 0x18, width: .doubleword, value: 0xd000_0000)
    function.writeConfiguration(offset: 0x3c, width: .byte, value: 11)
    #expect(takeWrites() == [], "BARs and interrupt line are the guest's own")
    // Bus mastering is turned on. Decoding in the device stays on, whatever the guest writes.
    function.writeConfiguration(offset: 4, width: .word, value: 0x406)
    #expect(takeWrites() == ["7:4=0007"])
    function.writeConfiguration(offset: 4, width: .word, value: 0x4)
    #expect(takeWrites() == [])
    function.writeConfiguration(offset: 4, width: .word, value: 0)
    #expect(takeWrites() == ["7:4=0003"])
    model.function.revoke()
  }

  @Test func `the device masters the bus only while the port above forwards requests`() throws {
    let port = RootPort(
      ExpressPort(portNumber: 0, slotNumber: 0), environment: environment(),
      address: RequesterID(bus: 0, device: 4, function: 0), routes: BusRoutes(root: Bus(number: 0)))
    let model = try make(below: port)
    try port.bus.add(model.function)
    _ = takeWrites()
    model.function.writeConfiguration(offset: 4, width: .word, value: 4)
    #expect(takeWrites() == [])
    port.function.writeConfiguration(offset: 4, width: .word, value: 4)
    #expect(takeWrites() == ["7:4=0007"])
    port.function.writeConfiguration(offset: 4, width: .word, value: 0)
    #expect(takeWrites() == ["7:4=0003"])
    // A guest that writes the device's own register meanwhile does not change this.
    model.function.writeConfiguration(offset: 4, width: .word, value: 0)
    model.function.writeConfiguration(offset: 4, width: .word, value: 4)
    #expect(takeWrites() == [])
    model.function.revoke()
    port.function.revoke()
  }

  @Test("CPUs access BARs as memory, except the page of the MSI-X table")
  func barsAreMappedExceptTheTable() throws {
    let model = try make()
    let function = model.function
    let bar = try #require(function.description.baseAddressRegisters.first { $0.index == 2 })
    function.place(bar, at: 0xd000_0000)
    #expect(memory.mapped == [])
    function.writeConfiguration(offset: 4, width: .word, value: 2)
    #expect(memory.mapped == [.init(address: 0xd000_0000, size: 0x2000)])
    // The table is emulated. The rest of its page is the device's and costs a host call.
    #expect(memoryBus.read(address: 0xd000_2000 + 12, width: .doubleword) == 1)
    #expect(memoryBus.read(address: 0xd000_2100, width: .doubleword) == 0x5a5a_5a5a)
    _ = takeWrites()
    memoryBus.write(address: 0xd000_2104, width: .word, value: 0xbeef)
    #expect(takeWrites() == ["2:2104=beef"])
    memoryBus.write(address: 0xd000_2000, width: .doubleword, value: 0xfee0_0000)
    #expect(takeWrites() == [], "the device's own table stays as VFIO programs it")
    function.place(bar, at: 0xe000_0000)
    #expect(memory.mapped == [.init(address: 0xe000_0000, size: 0x2000)])
    function.writeConfiguration(offset: 4, width: .word, value: 0)
    #expect(memory.mapped == [])
    function.writeConfiguration(offset: 4, width: .word, value: 2)
    model.function.revoke()
    #expect(memory.mapped == [])
  }

  /// The CPUs' memory slots follow the bus: a fixed region of the board hides the BAR, whichever was there first.
  @Test func `a slot exists only where the bus gives the address to the BAR`() throws {
    final class Chip: BusDevice {
      func read(offset: UInt64, width: AccessWidth) -> UInt64 { 0xc }
      func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
    }
    let model = try make()
    let function = model.function
    let bar = try #require(function.description.baseAddressRegisters.first { $0.index == 2 })
    _ = memoryBus.attach(Chip(), at: 0xd000_1000, size: 0x20)
    function.place(bar, at: 0xd000_0000)
    function.writeConfiguration(offset: 4, width: .word, value: 2)
    #expect(memory.mapped == [.init(address: 0xd000_0000, size: 0x1000)])
    #expect(memoryBus.read(address: 0xd000_1000, width: .byte) == 0xc)
    // The rest of the chip's page is the device's and costs a host call.
    #expect(memoryBus.read(address: 0xd000_1020, width: .byte) == 0x5a)
    function.place(bar, at: 0xd000_4000)
    #expect(memory.mapped == [.init(address: 0xd000_4000, size: 0x2000)])
    let chip = memoryBus.attach(Chip(), at: 0xd000_4000, size: 0x1000)
    #expect(memory.mapped == [.init(address: 0xd000_5000, size: 0x1000)])
    memoryBus.detach(chip)
    #expect(memory.mapped == [.init(address: 0xd000_4000, size: 0x2000)])
    model.function.revoke()
    #expect(memory.mapped == [])
  }

  @Test("host vectors are allocated on first use")
  func vectorsAreAllocatedOnFirstUse() throws {
    let model = try make()
    let function = model.function
    let bar = try #require(function.description.baseAddressRegisters.first { $0.index == 2 })
    function.place(bar, at: 0xd000_0000)
    function.writeConfiguration(offset: 4, width: .word, value: 6)
    #expect(takeInterruptSets().map { $0.prefix(7) } == ["0 from ", "0 from "], "INTx and its unmask eventfd")
    function.writeConfiguration(offset: 0x72, width: .word, value: 0x8000)
    #expect(takeInterruptSets() == ["0 from 0 off"], "no vector is used yet")
    func unmask(_ vector: UInt64) {
      let entry = 0xd000_2000 + vector * 16
      memoryBus.write(address: entry, width: .doubleword, value: 0xfee0_0000)
      memoryBus.write(address: entry + 8, width: .doubleword, value: 0x40 + vector)
      memoryBus.write(address: entry + 12, width: .doubleword, value: 0)
    }
    unmask(0)
    #expect(takeInterruptSets() == ["2 from 0 [500]"])
    #expect(
      router.routes.withLock { $0[0].message.withLock { $0 } } == InterruptMessage(address: 0xfee0_0000, data: 0x40))
    unmask(2)
    #expect(takeInterruptSets() == ["2 from 1 [501, 502]"])
    // While the vector is masked, its eventfd has no message, and the device still signals it.
    memoryBus.write(address: 0xd000_2000 + 12, width: .doubleword, value: 1)
    #expect(takeInterruptSets() == [] && router.routes.withLock { $0[0].message.withLock { $0 } } == nil)
    unmask(0)
    #expect(takeInterruptSets() == [])
    function.writeConfiguration(offset: 0x72, width: .word, value: 0)
    #expect(takeInterruptSets().first == "2 from 0 off")
    model.function.revoke()
  }

  @Test("if the kernel cannot add vectors, all of them are allocated again")
  func allVectorsAreAllocatedAgain() throws {
    let model = try make()
    let function = model.function
    let bar = try #require(function.description.baseAddressRegisters.first { $0.index == 2 })
    function.place(bar, at: 0xd000_0000)
    function.writeConfiguration(offset: 4, width: .word, value: 6)
    function.writeConfiguration(offset: 0x72, width: .word, value: 0x8000)
    memoryBus.write(address: 0xd000_2000 + 12, width: .doubleword, value: 0)
    kernel.state.withLock { $0.refusesMoreInterrupts = true }
    _ = takeInterruptSets()
    memoryBus.write(address: 0xd000_2010 + 12, width: .doubleword, value: 0)
    #expect(takeInterruptSets() == ["2 from 0 off", "2 from 0 [500, 501]"])
    model.function.revoke()
  }

  @Test("on a host with too few vectors the device keeps those it has, and one notice says so")
  func theDeviceKeepsItsVectors() throws {
    let notices = Notes<PassthroughNotice.Reason>()
    let model = try make { notices.add($0) }
    let function = model.function
    let bar = try #require(function.description.baseAddressRegisters.first { $0.index == 2 })
    function.place(bar, at: 0xd000_0000)
    function.writeConfiguration(offset: 4, width: .word, value: 6)
    kernel.state.withLock { state in
      state.refusesMoreInterrupts = true
      state.hostVectors = 1
    }
    function.writeConfiguration(offset: 0x72, width: .word, value: 0x8000)
    memoryBus.write(address: 0xd000_2000 + 12, width: .doubleword, value: 0)
    _ = takeInterruptSets()
    #expect(notices.all == [])
    memoryBus.write(address: 0xd000_2010 + 12, width: .doubleword, value: 0)
    #expect(takeInterruptSets() == ["2 from 0 off", "2 from 0 [500]"])
    let error = SystemError("VFIO_DEVICE_SET_IRQS", code: ENOSPC, cause: .vectors(available: 1, requested: 2))
    #expect(notices.all == [.interruptsRefused(error)])
    memoryBus.write(address: 0xd000_2010 + 12, width: .doubleword, value: 1)
    memoryBus.write(address: 0xd000_2010 + 12, width: .doubleword, value: 0)
    // Further vectors that the guest unmasks cause no further notice.
    memoryBus.write(address: 0xd000_2020 + 12, width: .doubleword, value: 0)
    memoryBus.write(address: 0xd000_2030 + 12, width: .doubleword, value: 0)
    #expect(notices.all.count == 1)
    model.function.revoke()
  }

  @Test("a notice reports that the host refuses INTx") func refusedINTxCausesANotice() throws {
    let notices = Notes<PassthroughNotice.Reason>()
    kernel.state.withLock { $0.failing[VFIO_DEVICE_SET_IRQS] = EBUSY }
    let model = try make { notices.add($0) }
    #expect(
      notices.all == [
        .interruptsRefused(SystemError("VFIO_DEVICE_SET_IRQS", "/dev/vfio/devices/vfio0", code: EBUSY))
      ])
    model.function.revoke()
  }

  @Test("INTx is deasserted at the end of interrupt and asserted by the next signal")
  func intxFollowsTheEndOfInterrupt() throws {
    let line = RecordingLine()
    let model = try make()
    model.function.connect(interruptLine: line)
    try model.start { _ in }
    let event = kernel.state.withLock { $0.interruptSets.first { $0.index == 0 }?.events.first ?? -1 }
    let descriptor = try FileDescriptor(duplicating: event)
    func signal() throws { try descriptor.write([1, 0, 0, 0, 0, 0, 0, 0]) }
    try signal()
    #expect(eventually { line.asserted })
    model.interruptEnded()
    #expect(!line.asserted)
    // The end of another device's interrupt on the same pin changes nothing.
    model.interruptEnded()
    #expect(line.changes == 2)
    try signal()
    #expect(eventually { line.asserted })
    model.function.revoke()
  }

  @Test("a reset stops DMA first")
  func resetStopsDMAFirst() throws {
    let model = try make()
    let function = model.function
    function.writeConfiguration(offset: 4, width: .word, value: 6)
    _ = takeWrites()
    kernel.state.withLock { $0.calls = [] }
    // Initiate Function Level Reset.
    function.writeConfiguration(offset: 0x88, width: .word, value: 0x8000)
    #expect(takeWrites() == ["7:4=0003", "7:4=0003"])
    #expect(kernel.state.withLock { $0.calls.contains("RESET") })
    #expect(function.readConfiguration(offset: 4, width: .word) == 0)
    #expect(!function.requester.busMasterEnable)
    model.function.revoke()
  }

  // MARK: Power states

  /// Outside D0 no CPU reaches the BARs. They are unmapped before the device leaves D0 and mapped after it returns.
  @Test("power states reach the device, and its BARs are mapped only in D0")
  func powerStatesReachTheDevice() throws {
    kernel.state.withLock { $0.devices[0].powerOffset = 0x44 }
    let model = try make()
    let function = model.function
    let bar = try #require(function.description.baseAddressRegisters.first { $0.index == 2 })
    function.place(bar, at: 0xd000_0000)
    function.writeConfiguration(offset: 4, width: .word, value: 6)
    _ = takeWrites()
    function.writeConfiguration(offset: 0x44, width: .word, value: 3)
    #expect(takeWrites() == ["7:44=03"] && kernel.state.withLock { $0.devices[0].power } == 3)
    #expect(memory.mapped == [] && memoryBus.read(address: 0xd000_2100, width: .doubleword) == nil)
    #expect(function.readConfiguration(offset: 0x44, width: .word) == 3)
    // Configuration space always answers.
    #expect(function.readConfiguration(offset: 0, width: .doubleword) == 0x1042_1af4)
    function.writeConfiguration(offset: 0x44, width: .word, value: 0)
    #expect(takeWrites() == ["7:44=00"] && kernel.state.withLock { $0.devices[0].power } == 0)
    #expect(memory.mapped == [.init(address: 0xd000_0000, size: 0x2000)])
    #expect(memoryBus.read(address: 0xd000_2100, width: .doubleword) == 0x5a5a_5a5a)
    #expect(function.readConfiguration(offset: 4, width: .word) == 6, "the guest's command register is unchanged")
    model.function.revoke()
  }

  /// Two CPUs write the power state. When the first CPU's write is processed, the register already holds the second
  /// one's value, and the BARs are still mapped, where a third CPU may access them.
  @Test("the device stays in D0 while its BARs are mapped")
  func theDeviceStaysInD0WhileBARsAreMapped() throws {
    kernel.state.withLock { $0.devices[0].powerOffset = 0x44 }
    let model = try make()
    let function = model.function
    let bar = try #require(function.description.baseAddressRegisters.first { $0.index == 2 })
    function.place(bar, at: 0xd000_0000)
    function.writeConfiguration(offset: 4, width: .word, value: 6)
    _ = takeWrites()
    function.updateConfiguration { $0.set(0x44, UInt8(3)) }
    model.configurationWritten(offset: 0x44, width: .word, value: 0)
    #expect(takeWrites() == [] && memory.mapped.count == 1)
    function.writeConfiguration(offset: 0x44, width: .word, value: 3)
    #expect(takeWrites() == ["7:44=03"] && memory.mapped == [])
    model.function.revoke()
  }

  @Test("a power state that the device does not have is ignored")
  func missingPowerStatesAreIgnored() throws {
    kernel.state.withLock { state in
      state.devices[0].powerOffset = 0x44
      // No D1 and no D2.
      state.devices[0].contents[7]?.store(UInt16(0x0003), at: 0x42)
    }
    let model = try make()
    let function = model.function
    _ = takeWrites()
    for power: UInt64 in [1, 2] {
      function.writeConfiguration(offset: 0x44, width: .byte, value: power)
      #expect(function.readConfiguration(offset: 0x44, width: .byte) == 0 && takeWrites() == [])
    }
    function.writeConfiguration(offset: 0x44, width: .byte, value: 3)
    #expect(takeWrites() == ["7:44=03"])
    model.function.revoke()
  }

  @Test("a reset first returns the device to full power")
  func resetBringsFullPower() throws {
    kernel.state.withLock { $0.devices[0].powerOffset = 0x44 }
    let model = try make()
    model.function.writeConfiguration(offset: 0x44, width: .word, value: 3)
    _ = takeWrites()
    model.function.reset()
    #expect(takeWrites().first == "7:44=00", "before the reset")
    #expect(model.function.readConfiguration(offset: 0x44, width: .word) == 0)
    model.function.revoke()
  }

  // MARK: The expansion ROM

  @Test("the ROM answers where the guest puts it, and is read from the device once")
  func theROMIsWhereTheGuestPutsIt() throws {
    kernel.state.withLock { state in
      state.devices[0].regions[6] = (0x3000, 0b001, [])
      state.devices[0].contents[6] = [0x55, 0xaa] + [UInt8](repeating: 7, count: 0x1ffe)
    }
    let model = try make()
    let function = model.function
    function.writeConfiguration(offset: 0x30, width: .doubleword, value: 0xffff_ffff)
    #expect(function.readConfiguration(offset: 0x30, width: .doubleword) == 0xffff_c001, "16 KiB, a power of two")
    function.writeConfiguration(offset: 0x30, width: .doubleword, value: 0xe000_0000)
    function.writeConfiguration(offset: 4, width: .word, value: 2)
    #expect(memoryBus.read(address: 0xe000_0000, width: .word) == nil, "the ROM's own enable bit is needed, too")
    function.writeConfiguration(offset: 0x30, width: .doubleword, value: 0xe000_0001)
    #expect(memoryBus.read(address: 0xe000_0000, width: .word) == 0xaa55)
    kernel.state.withLock { $0.calls = [] }
    #expect(memoryBus.read(address: 0xe000_1ffc, width: .quadword) == 0xffff_ffff_0707_0707)
    #expect(memoryBus.read(address: 0xe000_3fff, width: .byte) == 0xff)
    // Read-only, and read from the device once.
    _ = takeWrites()
    memoryBus.write(address: 0xe000_0000, width: .word, value: 0)
    #expect(memoryBus.read(address: 0xe000_0000, width: .word) == 0xaa55 && takeWrites() == [])
    #expect(kernel.state.withLock { $0.calls } == [])
    function.writeConfiguration(offset: 4, width: .word, value: 0)
    #expect(memoryBus.read(address: 0xe000_0000, width: .word) == nil)
    model.function.revoke()
  }

  @Test("a ROM that cannot be read is not read again")
  func anUnreadableROMIsReadOnce() throws {
    kernel.state.withLock { state in
      state.devices[0].regions[6] = (0x1000, 0b001, [])
      state.devices[0].contents[6] = []
    }
    let model = try make()
    model.function.writeConfiguration(offset: 0x30, width: .doubleword, value: 0xe000_0001)
    model.function.writeConfiguration(offset: 4, width: .word, value: 2)
    kernel.state.withLock { $0.calls = [] }
    for _ in 0..<5 { #expect(memoryBus.read(address: 0xe000_0000, width: .word) == 0xffff) }
    #expect(kernel.state.withLock { $0.calls } == ["read"])
    model.function.revoke()
  }

  @Test("a file replaces the device's ROM")
  func aFileReplacesTheROM() throws {
    kernel.state.withLock { $0.devices[0].regions[6] = (0x3000, 0b001, []) }
    func romRegister(_ source: ExpansionROM.Source) throws -> UInt64 {
      let kernel = FakeKernel.full(1)
      let device = try VFIODevice(
        file: KernelFile(opening: "/dev/vfio/devices/vfio0", calls: kernel), to: IOMMUFD(calls: kernel))
      let model = try VFIOPCI(
        device, environment: environment(), rom: source, address: RequesterID(bus: 0, device: 5, function: 0))
      defer { model.function.revoke() }
      model.function.writeConfiguration(offset: 0x30, width: .doubleword, value: 0xffff_ffff)
      return model.function.readConfiguration(offset: 0x30, width: .doubleword)
    }
    #expect(try romRegister(.file([1, 2, 3])) == 0xffff_f801)
    #expect(try romRegister(.file([UInt8](repeating: 0, count: 70_000))) == 0xfffe_0001)
    #expect(try romRegister(.device) == 0xffff_f001)
    #expect(try romRegister(.nowhere) == 0)
  }

  @Test("a revoked function leaves nothing behind")
  func nothingIsLeft() throws {
    do {
      let model = try make()
      try model.start { _ in }
      model.function.revoke()
    }
    #expect(kernel.complaints == [])
  }

  @Test("mapped areas are whole pages without the trapped ranges")
  func areasAreWholePagesWithoutTheTrapped() {
    func areas(_ mappable: [(UInt64, UInt64)], _ trapped: [Range<UInt64>]) -> [Range<UInt64>] {
      let region = VFIORegion(
        index: 0, size: 0x10000, offset: 0, isReadable: true, isWritable: true,
        mappableAreas: mappable.map { .init(offset: $0.0, size: $0.1) }, mapsMSIXTable: true)
      return VFIOPCI.areas(of: region, without: trapped).map { $0.offset..<$0.offset + $0.size }
    }
    #expect(areas([(0, 0x10000)], []) == [0..<0x10000])
    #expect(
      areas([(0, 0x10000)], [0x1000..<0x2000, 0x8000..<0x9000]) == [0..<0x1000, 0x2000..<0x8000, 0x9000..<0x10000])
    #expect(areas([(0, 0x10000)], [0..<0x1000]) == [0x1000..<0x10000])
    #expect(areas([(0x800, 0x2000)], []) == [0x1000..<0x2000])
    #expect(areas([(0, 0x800)], []) == [])
    #expect(areas([(0, .max), (0xf000, 0x2000), (.max, 2)], []) == [], "nothing beyond the region")
    #expect(areas([(0, 0x1000)], [0..<0x1000]) == [])
  }
}
