import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import TestSupport
import Testing
import VFIO
import VTd

@testable import Machine
@testable import Passthrough

/// Adds and removes devices of the host while the guest runs, on the fake kernel. A failure leaves no trace, a slow
/// kernel call blocks no other thread, and a removed device leaves nothing mapped.
@Suite struct PassthroughHotplugTests {
  // MARK: Failures

  /// Returns all state that a failed addition of a device must leave unchanged.
  private static func standing(_ machine: PassthroughBoard) -> [String] {
    machine.kernel.standing + machine.accelerator.registry.all.map { "registered \($0)" }
      + machine.accelerator.slots.mapped.map { "slot \($0)" }
      + machine.board.rootBus.all.map { "function \($0.requester.id)" }
      + machine.board.devices.all.map { "device \($0.path)" }
  }

  /// In each round a different kernel call fails while a device is added to a running machine. On i1, it is the
  /// object's first device. On i0, the object already has a device, which is behind another IOMMU of the host.
  @Test(arguments: [EIO, ENOMEM, EINVAL, EPERM], ["i0", "i1"])
  func `a device that cannot be added leaves host and guest unchanged`(_ code: Int32, _ object: String) throws {
    let kernel = FakeKernel.full(2) { number, device in device.iommu = number }
    kernel.state.withLock { $0.hasDMABuffers = true }
    let machine = try PassthroughBoard(
      kernel, [PassthroughBoard.options, PassthroughBoard.device(0, "i0")], objects: ["i0", "i1"])
    let driver = machine.driver(of: [1])
    driver.setFirstStage(0x20_0000)
    driver.enable()
    let before = Self.standing(machine)
    var refused = 0
    var ended = false
    for number in 0..<200 where !ended {
      kernel.state.withLock { state in
        state.callsBeforeFailure = number
        state.failure = code
        state.failed = nil
      }
      var device: Device?
      do {
        device = try machine.board.add(PassthroughBoard.device(1, object), with: machine.configuration)
      } catch {
        #expect(error.description.hasPrefix("-device vfio-pci: 0000:02:00.0: "))
        refused += 1
      }
      let failed = kernel.state.withLock { state in
        defer { state.callsBeforeFailure = nil }
        return state.failed
      }
      if let device { #expect(machine.board.unplug(device.identity) != nil) }
      #expect(Self.standing(machine) == before, "call \(number), \(failed ?? "none")")
      ended = failed == nil
    }
    #expect(ended && refused >= 15, "\(refused) refusals")
    driver.setFirstStage(0x30_0000)
    #expect(driver.invalidateEntry() && kernel.nestedRoots == [0x30_0000])
    machine.end()
    #expect(kernel.complaints == [])
  }

  // MARK: Slow kernel calls

  /// The kernel is busy with one request for the new device. Meanwhile a CPU invalidates, a monitor inspects the unit,
  /// an object is deleted and buses are reset.
  @Test(
    arguments: [
      ("i1", "IOAS_MAP"), ("i1", "HWPT_ALLOC"), ("i1", "ATTACH"), ("i0", "HWPT_ALLOC"), ("i0", "ATTACH"),
    ])
  func `a slow kernel call for a new device blocks no other thread`(_ object: String, _ request: String) throws {
    let kernel = FakeKernel.full(2) { number, device in device.iommu = number }
    let machine = try PassthroughBoard(
      kernel, [PassthroughBoard.options, PassthroughBoard.device(0, "i0")], objects: ["i0", "i1"])
    let unit = try #require(machine.board.unit(at: PCIPlace(machine.address(1))))
    let driver = machine.driver(of: [1])
    driver.setFirstStage(0x20_0000)
    driver.enable()
    let reached = Semaphore()
    let goes = Semaphore()
    let isTaken = SharedInteger()
    kernel.beforeRequest.withLock {
      $0 = { name in
        guard name == request, isTaken.value == 0 else { return }
        isTaken.increment()
        reached.signal()
        goes.wait()
      }
    }
    let (board, configuration) = (machine.board, machine.configuration)
    let builder = try Thread(name: "hotplug") {
      _ = try? board.add(PassthroughBoard.device(1, object), with: configuration)
    }
    reached.wait()
    let done = SharedInteger()
    nonisolated(unsafe) let guest = driver
    let others = try Thread(name: "others") {
      guest.setFirstStage(0x30_0000)
      if guest.invalidateEntry() { done.increment() }
      if board.passthrough.existingBindings(of: unit)?.boundFunctions.count == 1 { done.increment() }
      board.passthrough.report(PassthroughNotice(device: "other", reason: .error))
      board.passthrough.remove("i9")
      board.passthrough.resetBuses()
      try? board.memory.clear()
      done.increment()
    }
    #expect(eventually { done.value == 3 })
    goes.signal()
    builder.join()
    others.join()
    #expect(board.devices.all.count == 3)
    machine.end()
    #expect(kernel.complaints == [])
  }

  /// After the last passed-through device is unplugged, RAM is as on a machine that never had one.
  @Test func `RAM is unpinned with the last passed-through device`() throws {
    let kernel = FakeKernel.full(2)
    do {
      var unit = PassthroughBoard.options
      unit.unit.cachingMode = true
      let machine = try PassthroughBoard(kernel, [unit], objects: ["i0", "i1"])
      let before = kernel.standing
      #expect(!machine.board.memory.isPinned)
      var devices: [Device] = []
      for (number, object) in ["i0", "i1"].enumerated() {
        devices.append(
          try machine.board.add(PassthroughBoard.device(number, object), with: machine.configuration))
      }
      #expect(machine.board.unplug(devices[0].identity) != nil && machine.board.memory.isPinned)
      #expect(machine.board.unplug(devices[1].identity) != nil && !machine.board.memory.isPinned)
      #expect(kernel.standing == before)
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  /// An object with an inherited file cannot open that file again.
  @Test func `an inherited iommufd serves one device after another`() throws {
    let kernel = FakeKernel.full(1)
    let descriptor = kernel.open("/dev/iommu", flags: 0)
    do {
      let shared = PassthroughObjects(calls: kernel)
      let reference = try DescriptorReference(text: "\(descriptor)")
      let ram = try GuestMemory(size: 16 << 20, lowLimit: 16 << 20)
      func makeMemory() throws -> PassthroughMemory {
        try shared.memory(of: "i0", file: { reference.kernelFile(calls: kernel) }, ram: ram)
      }
      for _ in 0..<3 {
        let memory = try makeMemory()
        #expect(kernel.state.withLock { $0.mapped.count } == 1)
        _ = consume memory
        #expect(kernel.state.withLock { $0.mapped.isEmpty && $0.files.count == 1 })
      }
      kernel.state.withLock { $0.failing[IOMMU_IOAS_MAP] = ENOMEM }
      #expect(throws: PassthroughError.Problem.self) { try makeMemory() }
      kernel.state.withLock { $0.failing = [:] }
      _ = try makeMemory()
      shared.remove("i0")
    }
    #expect(kernel.complaints == [])
  }

  // MARK: Resets

  /// The two functions share a bus, and neither has a function-level reset.
  @Test func `adding a device does not reset a bus whose other function the guest uses`() throws {
    let kernel = FakeKernel.full(2) { _, device in
      device.hasReset = false
      device.bus = 20
    }
    kernel.state.withLock { $0.hasDMABuffers = true }
    let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0")])
    let resets = { kernel.state.withLock { $0.devices.map(\.resets) } }
    #expect(resets() == [1, 1] && machine.notices.all == [])
    machine.writeConfiguration(machine.address(0), 4, 6, 2)
    try machine.board.add(PassthroughBoard.device(1, "i0"), with: machine.configuration)
    #expect(resets() == [1, 1])
    // The function that the guest uses is unchanged.
    #expect(kernel.state.withLock { $0.devices[0].contents[7]?[4] } == 7)
    #expect(
      machine.notices.all == [PassthroughNotice(device: "0000:02:00.0", reason: .notResetBeside(["0000:01:00.0"]))])
    machine.board.reset()
    #expect(resets() == [2, 2] && machine.notices.all.count == 1)
    machine.end()
    #expect(kernel.complaints == [])
  }

  /// At the start, the report waits for all devices, because a later device can make the reset of the bus possible.
  /// After a hotplug there is nothing to wait for.
  @Test func `a hotplugged device that cannot be reset is reported at once`() throws {
    let kernel = FakeKernel.full(2) { number, device in
      device.hasReset = number == 0
      if number == 1 { device.bus = 20 }
    }
    kernel.state.withLock { state in
      state.strangers = [.max]
      state.hasDMABuffers = true
    }
    let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0")])
    #expect(machine.notices.all == [])
    try machine.board.add(PassthroughBoard.device(1, "i0"), with: machine.configuration)
    let error = SystemError("VFIO_DEVICE_PCI_HOT_RESET", code: EPERM)
    #expect(machine.notices.all == [PassthroughNotice(device: "0000:02:00.0", reason: .notReset(error))])
    machine.end()
    #expect(kernel.complaints == [])
  }

  // MARK: Surprise removal

  /// The device does DMA through the guest's first stage, and its BAR is placed and mapped for peers.
  @Test func `a surprise removal ends requests, detaches, unmaps and closes, in this order`() throws {
    let kernel = FakeKernel.full(2) { number, device in device.iommu = number }
    kernel.state.withLock { $0.hasDMABuffers = true }
    let machine = try PassthroughBoard(
      kernel, [PassthroughBoard.options, PassthroughBoard.device(0, "i0")], objects: ["i0", "i1"])
    let before = kernel.standing
    let device = try machine.board.add(PassthroughBoard.device(1, "i1"), with: machine.configuration)
    try machine.board.placeResources()
    let address = try #require(device.place).address
    machine.writeConfiguration(address, 4, 6, 2)
    let driver = PassthroughBoard.Driver(machine.board, [machine.address(1), address])
    driver.setFirstStage(0x20_0000)
    driver.enable()
    if case .nested = kernel.translation(1) {} else { Issue.record("not on the guest's first stage") }
    // RAM and the BAR.
    #expect(kernel.state.withLock { $0.mapped.values.map(\.count).sorted() } == [2, 2])
    kernel.state.withLock { $0.steps = [] }
    // An access in flight holds the function beyond its removal.
    let inFlight = try #require(machine.board.rootBus.function(at: address.deviceFunction))
    #expect(machine.board.unplug(device.identity) != nil)
    #expect(kernel.translation(1) == nil, "detached now, not when the last access ends")
    _ = consume inFlight
    let steps = kernel.state.withLock { $0.steps }
    func first(_ isWanted: (FakeKernel.Step) -> Bool) -> Int { steps.firstIndex(where: isWanted) ?? -1 }
    let order = [
      first { $0 == .busMasterOff(device: 1) }, first { $0 == .detach(device: 1) }, first { $0 == .unmap },
      first { $0 == .unmapBAR }, first { $0 == .close(.device(1)) },
    ]
    #expect(order == order.sorted() && !order.contains(-1), "\(steps)")
    #expect(steps.count { $0 == .detach(device: 1) } == 1 && steps.contains(.close(.iommufd)))
    #expect(
      kernel.standing.filter { !$0.hasPrefix("object") && !$0.contains("vfio0") }
        == before.filter { !$0.hasPrefix("object") && !$0.contains("vfio0") })
    #expect(kernel.nestedRoots == [0x20_0000] && machine.accelerator.registry.all.count == 1)
    driver.disable()
    #expect(kernel.standing == before)
    machine.end()
    #expect(kernel.complaints == [])
  }
}
