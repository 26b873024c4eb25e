import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import PCI
import TestSupport
import Testing
import VFIO
@testable import VTd

@testable import Machine
@testable import Passthrough

/// Follows passed-through devices on a whole board from start to end, on the fake kernel: several iommufd objects,
/// emulated devices, resets, errors, the host's requests. No failure leaves anything behind.
@Suite struct PassthroughLifeTests {
  /// Returns a kernel with three devices: one with a function-level reset, for `i0`, and two without, on one bus behind
  /// another IOMMU, for `i1`.
  private static func makeKernel() -> FakeKernel {
    let kernel = FakeKernel.full(3) { number, device in
      guard number > 0 else {
        device.contents[7]?[0x87] = 0x10
        return
      }
      device.hasReset = false
      device.bus = 20
      device.iommu = 1
    }
    kernel.state.withLock { $0.hasDMABuffers = true }
    return kernel
  }

  /// Returns the unit, an emulated device and the three passed-through devices.
  private static func devices() -> [any DeviceOptions] {
    [
      PassthroughBoard.options, EduOptions(), PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i1"),
      PassthroughBoard.device(2, "i1"),
    ]
  }

  private static func makeBoard(_ kernel: FakeKernel, _ sysfs: FakeSysfs? = nil) throws -> PassthroughBoard {
    try PassthroughBoard(kernel, devices(), objects: ["i0", "i1"], sysfs: sysfs)
  }

  // MARK: From start to end

  /// Acts as a guest between two resets: starts drivers, sets tables, changes power states, resets one function.
  @discardableResult
  private static func use(_ machine: PassthroughBoard) -> PassthroughBoard.Driver {
    let functions = [2, 3, 4]
    for index in functions {
      let function = machine.address(index)
      machine.writeConfiguration(function, 4, 0x406, 2)
      machine.writeConfiguration(function, 0x72, 0x8000, 2)
      let table = machine.readConfiguration(function, 0x18) & 0xffff_fff0 + 0x2000
      machine.board.writeMemory(table, 4, 0xfee0_0000)
      machine.board.writeMemory(table + 8, 4, 0x41)
      machine.board.writeMemory(table + 12, 4, 0)
    }
    let driver = machine.driver(of: functions + [1])
    driver.setFirstStage(0x20_0000)
    driver.enable()
    driver.invalidatePages((0..<10).map { 0x1000 * $0 })
    driver.setFirstStage(0x30_0000)
    driver.invalidateEntry()
    driver.setFirstStage(0)
    driver.invalidateEntry()
    driver.setPassThrough()
    driver.invalidateEntry()
    let first = machine.address(2)
    machine.writeConfiguration(first, 0x44, 3, 2)
    machine.writeConfiguration(first, 0x44, 0, 2)
    // Initiate Function Level Reset.
    machine.writeConfiguration(first, 0x88, 0x8000, 2)
    return driver
  }

  private static func live(_ machine: PassthroughBoard) throws {
    use(machine)
    machine.board.reset()
    try machine.board.placeResources()
    use(machine)
    machine.board.unplug(try machine.identity(machine.address(3)))
  }

  @Test("a machine that starts, runs and ends leaves nothing behind")
  func aLifeLeavesNothing() throws {
    let kernel = Self.makeKernel()
    weak var board: Board?
    weak var registry: EventAccelerator.Registry?
    do {
      let machine = try Self.makeBoard(kernel)
      board = machine.board
      registry = machine.accelerator.registry
      #expect(machine.accelerator.registry.all.count == 3)
      #expect(machine.accelerator.slots.mapped.count == 3)
      // RAM and one BAR on `i0`; RAM and two BARs on `i1`.
      #expect(kernel.state.withLock { $0.mapped.values.map(\.count).sorted() } == [2, 3])
      try Self.live(machine)
      #expect(machine.notices.all == [])
      #expect(machine.accelerator.registry.all.count == 2)
      machine.end()
      #expect(machine.accelerator.registry.all == [] && machine.accelerator.slots.mapped == [])
    }
    #expect(kernel.complaints == [])
    #expect(board == nil && registry == nil, "nothing holds the board")
    // The sequence makes every known call except these.
    let made = Set(kernel.state.withLock { $0.calls })
    let all = Set(FakeKernel.names.values).union(["open", "mmap", "read", "write", "KVM_DEV_VFIO_FILE_ADD"])
    #expect(all.subtracting(made).subtracting(["FAULT_ALLOC"]) == ["IOVA_RANGES"])
    #expect(made.subtracting(all) == [])
  }

  /// In each round another call fails once: the machine either does not start or goes on.
  @Test("a failure of any kernel call leaves nothing behind", arguments: [EIO, ENOMEM, EINVAL])
  func nothingLeaksWhicheverCallFails(_ code: Int32) throws {
    let sysfs = PassthroughBoard.sysfs(of: Self.makeKernel())
    var refused = 0
    var lived = 0
    for number in 0..<4000 {
      let kernel = Self.makeKernel()
      kernel.state.withLock { state in
        state.callsBeforeFailure = number
        state.failure = code
      }
      do {
        let machine = try Self.makeBoard(kernel, sysfs)
        try Self.live(machine)
        machine.end()
        lived += 1
      } catch StartError.passthrough(let error) {
        #expect(error.description.hasPrefix("-device vfio-pci: 0000:0") && !error.description.contains("\n"))
        refused += 1
      }
      let name = kernel.state.withLock { $0.failed }
      #expect(kernel.complaints == [], "call \(number), \(name ?? "none")")
      guard name != nil else {
        #expect(refused >= 25 && lived >= 100, "\(refused) starts refused, \(lived) machines ran")
        return
      }
    }
    Issue.record("the sequence did not end within 4000 calls")
  }

  @Test("two hundred cycles of unplug and plug leave nothing behind")
  func twoHundredCyclesLeaveNothing() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try Self.makeBoard(kernel)
      let address = machine.address(2)
      let driver = machine.driver(of: [2, 3, 4])
      driver.setFirstStage(0x20_0000)
      driver.enable()
      func counts() -> [Int] {
        kernel.state.withLock { state in
          [state.files.count, state.objects.count, state.mapped.values.map(\.count).reduce(0, +), state.hostMappings]
        } + [machine.accelerator.slots.mapped.count, machine.accelerator.registry.all.count]
      }
      let before = counts()
      for round in 0..<200 as Range<UInt64> {
        #expect(machine.board.unplug(try machine.identity(address)) != nil)
        #expect(kernel.state.withLock { $0.devices[0].boundTo } == nil)
        try machine.board.add(PassthroughBoard.device(0, "i0"), with: machine.configuration)
        try machine.board.placeResources()
        driver.setFirstStage(0x20_0000 + round << 12)
        #expect(driver.invalidateEntry())
        #expect(kernel.nestedRoots == [0x20_0000 + round << 12, 0x20_0000 + round << 12])
      }
      #expect(counts() == before)
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  // MARK: Several iommufd objects, and emulated devices

  @Test("devices of two iommufd objects and an emulated device share one table of the guest")
  func devicesOfTwoObjectsAreBoundTogether() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try Self.makeBoard(kernel)
      #expect(kernel.state.withLock { $0.files.values.count { $0 == .iommufd } } == 2)
      #expect(
        kernel.attached(1) == kernel.attached(2) && kernel.attached(0) != kernel.attached(1))
      let driver = machine.driver(of: [1, 2, 3, 4])
      driver.setFirstStage(0x20_0000)
      driver.enable()
      // The guest's table is one nested table on each iommufd; the emulated device needs none.
      #expect(kernel.nestedRoots == [0x20_0000, 0x20_0000])
      #expect(driver.invalidatePages([0x1000, 0x2000]))
      #expect(kernel.state.withLock { $0.invalidations.map(\.entries.count) } == [2, 2], "one call for each table")
      // The emulated device translates by the same entry.
      let unit = try #require(machine.board.unit(at: PCIPlace(machine.address(1))))
      #expect(
        unit.hostBinding(for: machine.address(1), pasid: nil).binding
          == unit.hostBinding(for: machine.address(2), pasid: nil).binding)
      driver.disable()
      #expect(kernel.nestedRoots == [])
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  /// If the kernel cannot export BARs as dma-bufs, one notice names an affected device, as soon as there is a peer.
  @Test("BARs that peers cannot reach are reported once")
  func unreachableBARsAreReportedOnce() throws {
    let kernel = FakeKernel.full(2) { number, device in if number == 0 { device.regions[2] = nil } }
    let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(1, "i0")])
    #expect(machine.notices.all == [], "there is no peer that could reach them")
    try machine.board.add(PassthroughBoard.device(0, "i0"), with: machine.configuration)
    machine.board.reset()
    try machine.board.placeResources()
    let error = SystemError("VFIO_DEVICE_FEATURE_DMA_BUF", "/dev/vfio/devices/vfio1", code: ENOTTY)
    let release = try Folder.text(of: "/proc/sys/kernel/osrelease")
    #expect(
      machine.notices.all == [
        PassthroughNotice(device: "0000:02:00.0", reason: .outOfPeersReach(error, kernelRelease: release))
      ])
    machine.end()
    #expect(kernel.complaints == [])
  }

  /// The guest itself places a BAR over RAM or over another BAR.
  @Test("a BAR that the guest places over RAM or another BAR is not reported")
  func overlappingBARsAreNotReported() throws {
    let kernel = FakeKernel.full(2)
    kernel.state.withLock { $0.hasDMABuffers = true }
    let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i0")])
    let function = machine.address(1)
    let own = machine.readConfiguration(function, 0x18)
    for place in [0x10_0000, machine.readConfiguration(machine.address(0), 0x18) & 0xffff_fff0] {
      machine.writeConfiguration(function, 0x18, place)
      #expect(kernel.state.withLock { $0.mapped.values.map(\.count) } == [2])
    }
    machine.writeConfiguration(function, 0x18, own)
    #expect(kernel.state.withLock { $0.mapped.values.map(\.count) } == [3] && machine.notices.all == [])
    machine.end()
    #expect(kernel.complaints == [])
  }

  /// Without an IOMMU of the guest's, the kernel's own table over the guest's memory suffices.
  @Test("without a unit, devices use the kernel's own table and no nested one")
  func withoutAUnitNothingNests() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try PassthroughBoard(
        kernel, [PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i1")], objects: ["i0", "i1"])
      #expect(kernel.attached(0) == .addressSpace && kernel.attached(1) == .addressSpace)
      #expect(!kernel.state.withLock { $0.calls.contains("HWPT_ALLOC") || $0.calls.contains("GET_HW_INFO") })
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  // MARK: Reset

  /// DMA and interrupts are off before the devices' reset; full power and the plain second stage are back after it.
  @Test("a machine reset resets each device once and returns it to full power and second stage")
  func theMachinesReset() throws {
    let kernel = Self.makeKernel()
    let machine = try Self.makeBoard(kernel)
    let driver = Self.use(machine)
    driver.setFirstStage(0x20_0000)
    #expect(driver.invalidateEntry() && kernel.nestedRoots == [0x20_0000, 0x20_0000])
    for index in [2, 3, 4] {
      machine.writeConfiguration(machine.address(index), 4, 6, 2)
      machine.writeConfiguration(machine.address(index), 0x72, 0x8000, 2)
      machine.writeConfiguration(machine.address(index), 0x44, 3, 2)
    }
    #expect(kernel.state.withLock { $0.devices.map(\.power) } == [3, 3, 3])
    kernel.state.withLock { state in
      state.calls = []
      for index in 0..<3 {
        state.devices[index].resets = 0
        state.devices[index].writes = []
      }
    }
    machine.board.reset()
    #expect(kernel.state.withLock { $0.devices.map(\.power) } == [0, 0, 0])
    #expect(kernel.state.withLock { $0.devices.map(\.resets) } == [1, 1, 1], "the shared bus once, for both")
    #expect(kernel.state.withLock { $0.calls.count { $0 == "HOT_RESET" } } == 1)
    #expect(kernel.nestedRoots == [])
    if case .parent = kernel.attached(0) {} else { Issue.record("not on its second stage") }
    for index in [2, 3, 4] {
      let function = machine.address(index)
      #expect(machine.readConfiguration(function, 4, 2) == 0 && machine.readConfiguration(function, 0x44, 2) == 0)
      #expect(machine.readConfiguration(function, 0x72, 2) & 0x8000 == 0)
      // The first and the last write to the command register leave bus mastering off.
      let commands = kernel.state.withLock { $0.devices[index - 2].writes.filter { $0.offset == 4 } }
      #expect(commands.first?.bytes == [3, 0] && commands.last?.bytes == [3, 0])
    }
    #expect(machine.notices.all == [])
    machine.end()
    #expect(kernel.complaints == [])
  }

  @Test("a bus shared with the host is not reset, which is reported once")
  func aBusThatIsSharedWithTheHostIsNotReset() throws {
    let kernel = FakeKernel.full(1) { $1.hasReset = false }
    kernel.state.withLock { $0.strangers = [.max] }
    let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0")])
    #expect(kernel.state.withLock { $0.devices[0].resets } == 0)
    machine.board.reset()
    let error = SystemError("VFIO_DEVICE_PCI_HOT_RESET", code: EPERM)
    #expect(machine.notices.all == [PassthroughNotice(device: "0000:01:00.0", reason: .notReset(error))], "once")
    // FLR is not offered if the function cannot be reset.
    #expect(machine.readConfiguration(machine.address(0), 0x84) & 1 << 28 == 0)
    kernel.state.withLock { $0.strangers = [] }
    machine.board.reset()
    #expect(kernel.state.withLock { $0.devices[0].resets } == 1)
    machine.end()
    #expect(kernel.complaints == [])
  }

  /// A bus reset is better than a reset through D3hot, which is the fallback if the bus cannot be reset.
  @Test(
    "FLR is preferred to a bus reset, and a bus reset to one through D3hot",
    arguments: [
      (false, 7, "HOT_RESET"), (false, nil, "RESET"), (true, 5, "RESET"),
    ] as [(Bool, Int?, String)])
  func whichResetIsTaken(hasFunctionLevelReset: Bool, bus: Int?, reset: String) throws {
    let kernel = FakeKernel.full(1) { _, device in
      // No_Soft_Reset is clear.
      device.contents[7]?[0x87] = hasFunctionLevelReset ? 0x10 : 0
      device.bus = bus
    }
    let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0")])
    #expect(kernel.state.withLock { $0.calls.filter { $0.hasSuffix("RESET") } } == [reset])
    machine.end()
    #expect(kernel.complaints == [])
  }

  // MARK: Signals of the host

  private func signal(_ type: UInt32, _ device: Int, _ kernel: FakeKernel) throws {
    let sets = kernel.state.withLock { $0.interruptSets.filter { $0.index == type && !$0.events.isEmpty } }
    try FileDescriptor(duplicating: try #require(sets[device].events.first)).write([1, 0, 0, 0, 0, 0, 0, 0])
  }

  private func next(_ board: Board) -> MachineEvent? {
    _ = Poll.readable([board.events.rawValue], milliseconds: 10_000)
    return board.events.take()
  }

  @Test("a device error stops the guest and is reported")
  func anErrorStopsTheGuest() throws {
    let kernel = FakeKernel.full(1)
    let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0")])
    try signal(3, 0, kernel)
    #expect(next(machine.board) == .deviceError)
    #expect(eventually { !machine.notices.all.isEmpty })
    #expect(machine.notices.all == [PassthroughNotice(device: "0000:01:00.0", reason: .error)])
    machine.end()
    #expect(kernel.complaints == [])
  }

  @Test(arguments: [0, 1500] as [UInt32])
  func `the host's request for a device carries the device's x-req-patience`(_ patience: UInt32) throws {
    let kernel = FakeKernel.full(1)
    let options = try VFIOPCIOptions([
      PropertyAssignment(name: "host", value: "0000:01:00.0"), PropertyAssignment(name: "iommufd", value: "i0"),
      PropertyAssignment(name: "x-req-patience", value: "\(patience)"),
    ])
    let machine = try PassthroughBoard(kernel, [options])
    let identity = try machine.identity(machine.address(0))
    try signal(4, 0, kernel)
    #expect(next(machine.board) == .hostRequest(identity, patience: patience))
    machine.end()
    #expect(kernel.complaints == [])
  }

  @Test("the host's request for a device removes it from the guest and returns it to the host")
  func aRequestTakesTheDeviceFromTheGuest() throws {
    let kernel = Self.makeKernel()
    let machine = try Self.makeBoard(kernel)
    let driver = Self.use(machine)
    driver.setFirstStage(0x20_0000)
    driver.invalidateEntry()
    let address = machine.address(2)
    let identity = try machine.identity(address)
    // The guest reset this function, which cleared its BARs.
    try machine.board.placeResources()
    let bar = machine.readConfiguration(address, 0x18) & 0xffff_fff0
    try signal(4, 0, kernel)
    #expect(next(machine.board) == .hostRequest(identity, patience: 8000))
    #expect(machine.board.readMemory(bar + 0x2100, 4) == 0x5a5a_5a5a, "the request is not handled yet")
    #expect(machine.board.unplug(identity) != nil && machine.board.unplug(identity) == nil)
    #expect(machine.readConfiguration(address, 0) == 0xffff_ffff && machine.readConfiguration(address, 0x70, 1) == 0xff)
    #expect(machine.board.readMemory(bar + 0x2100, 4) == 0xffff_ffff)
    machine.writeConfiguration(address, 4, 6, 2)
    machine.board.writeMemory(bar, 4, 1)
    // The host has its device back: it is not bound, not attached and not mapped.
    kernel.state.withLock { state in
      #expect(state.devices[0].boundTo == nil && state.devices[0].attachedTo == nil)
      #expect(!state.files.values.contains(.device(0)) && state.files.values.contains(.device(1)))
      #expect(state.hostMappings == 2 && state.mapped.values.map(\.count).sorted() == [3])
    }
    #expect(machine.accelerator.registry.all.count == 2 && machine.accelerator.slots.mapped.count == 2)
    // The other devices go on; tables that only the removed device used are gone.
    #expect(kernel.nestedRoots == [0x20_0000])
    driver.setFirstStage(0x30_0000)
    #expect(driver.invalidateEntry() && kernel.nestedRoots == [0x30_0000])
    machine.board.reset()
    try machine.board.placeResources()
    #expect(machine.readConfiguration(address, 0) == 0xffff_ffff)
    machine.end()
    #expect(kernel.complaints == [])
  }

  /// CPUs that access the device during its removal read its value or all ones, and are not delayed.
  @Test("accesses during a removal complete")
  func accessesDuringARemovalComplete() throws {
    for _ in 0..<20 {
      let kernel = FakeKernel.full(1)
      let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0")])
      let address = machine.address(0)
      let board = machine.board
      let bar = machine.readConfiguration(address, 0x18) & 0xffff_fff0
      let space = BoardLayout.configurationAccess + UInt64(address.rawValue) << 12
      let ends = SharedInteger()
      let rounds = (0..<3).map { _ in SharedInteger() }
      let threads = try (0..<3).map { number in
        try Thread(name: "access") {
          while ends.value == 0 {
            let round = rounds[number].value + 1
            switch (number + round) % 4 {
            case 0: #expect([0x5a5a_5a5a, 0xffff_ffff].contains(board.readMemory(bar + 0x2100, 4)))
            case 1: #expect([0x1042_1af4, 0xffff_ffff].contains(board.readMemory(space, 4)))
            case 2: board.writeMemory(space + 4, 2, round % 2 == 0 ? 6 : 0)
            default: board.writeMemory(space + 0x44, 2, round % 3 == 0 ? 3 : 0)
            }
            rounds[number].value = round
          }
        }
      }
      // All threads access the device, and continue after it is gone.
      #expect(eventually { rounds.allSatisfy { $0.value >= 4 } })
      #expect(board.unplug(try machine.identity(address)) != nil)
      let done = rounds.map(\.value)
      #expect(eventually { zip(rounds, done).allSatisfy { $0.value >= $1 + 4 } })
      ends.value = 1
      for thread in threads { thread.join() }
      #expect(machine.accelerator.slots.mapped == [])
      #expect(kernel.state.withLock { $0.devices[0].boundTo } == nil)
      machine.end()
      #expect(kernel.complaints == [])
    }
  }
}
