import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import Testing
import VFIO
@testable import VTd

@testable import Machine
@testable import Passthrough

/// Follows PASIDs of passed-through devices on a whole board, on the fake kernel: reset, unplug, the end of the machine,
/// and failures of the kernel.
@Suite struct PassthroughPASIDTests {
  /// Returns a kernel with two devices with PASIDs behind one IOMMU.
  private static func makeKernel() -> FakeKernel {
    let kernel = FakeKernel.full(2) { _, device in
      device.extendedCapability |= 1 << 40 | 19 << 35
      device.pasidWidth = 20
      device.regions[7] = (4096, 0b011, [])
      var image = FakeKernel.endpointImage
      image.store(UInt32(0x4), at: 0x18)
      image.store(UInt32(0x1), at: 0x20)
      image[0x87] = 0x10  // FLR
      device.contents[7] = image
    }
    kernel.state.withLock { $0.hasDMABuffers = true }
    return kernel
  }

  private static func makeBoard(_ kernel: FakeKernel, pasidBits: Int = 20, sysfs: FakeSysfs? = nil) throws
    -> PassthroughBoard
  {
    var unit = PassthroughBoard.options
    unit.unit.pasidBits = pasidBits
    return try PassthroughBoard(
      kernel, [unit, PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i0")], sysfs: sysfs)
  }

  /// The offset of PASID Control.
  private static let control = 0xff8 + 6

  /// Binds PASIDs 1 to 3 of both devices to first stages.
  private static func bind(_ machine: PassthroughBoard) -> PassthroughBoard.Driver {
    for index in [1, 2] {
      machine.writeConfiguration(machine.address(index), 4, 0x406, 2)
      machine.writeConfiguration(machine.address(index), control, 1, 2)
    }
    let driver = machine.driver(of: [1, 2])
    driver.allowPASIDs()
    driver.setFirstStage(0x20_0000)
    driver.enable()
    for pasid: UInt64 in 1...3 {
      driver.setFirstStage(0x20_0000 + pasid << 16, pasid: pasid)
      driver.invalidateEntry(pasid: pasid)
    }
    return driver
  }

  private static let roots: [UInt64] = [0x20_0000, 0x21_0000, 0x22_0000, 0x23_0000]

  @Test("unplugging ends the device's requests, detaches its PASIDs, frees nothing that the other device uses")
  func unplug() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try Self.makeBoard(kernel)
      let before = kernel.standing
      let driver = Self.bind(machine)
      #expect(kernel.pasids(of: 0) == [1, 2, 3] && kernel.pasids(of: 1) == [1, 2, 3])
      #expect(kernel.nestedRoots == Self.roots, "both devices share each table")
      kernel.state.withLock { $0.steps = [] }
      machine.board.unplug(try machine.identity(machine.address(1)))
      let steps = kernel.state.withLock { $0.steps }
      let expected: [FakeKernel.Step] = [
        .busMasterOff(device: 0), .detachPASID(1, device: 0), .detachPASID(2, device: 0), .detachPASID(3, device: 0),
        .detach(device: 0), .close(.device(0)),
      ]
      #expect(steps.filter(expected.contains) == expected, "in this order")
      #expect(kernel.pasids(of: 1) == [1, 2, 3] && kernel.nestedRoots == Self.roots)

      // The device comes back, and finds the PASIDs of the guest's tables.
      try machine.board.add(PassthroughBoard.device(0, "i0"), with: machine.configuration)
      try machine.board.placeResources()
      #expect(kernel.pasids(of: 0) == [] && kernel.nestedRoots == Self.roots)
      machine.writeConfiguration(machine.address(1), Self.control, 1, 2)
      #expect(kernel.pasids(of: 0) == [1, 2, 3] && kernel.nestedRoots == Self.roots)
      #expect(driver.invalidatePages([0x1000], pasid: 2))
      #expect(kernel.state.withLock { $0.invalidations.count } == 1)
      driver.disable()
      #expect(kernel.pasids(of: 0) == [] && kernel.pasids(of: 1) == [] && kernel.nestedRoots == [])
      #expect(before.filter { $0.hasPrefix("object") } == kernel.standing.filter { $0.hasPrefix("object") })
      #expect(machine.notices.all == [])
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  @Test("a machine reset takes all PASIDs off, and the end of the machine leaves nothing behind")
  func reset() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try Self.makeBoard(kernel)
      _ = Self.bind(machine)
      machine.board.reset()
      #expect(kernel.pasids(of: 0) == [] && kernel.pasids(of: 1) == [] && kernel.nestedRoots == [])
      try machine.board.placeResources()
      _ = Self.bind(machine)
      #expect(kernel.pasids(of: 0) == [1, 2, 3])
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  @Test("FLR takes the function's PASIDs off before the device is reset, and PASID Enable brings them back")
  func functionLevelReset() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try Self.makeBoard(kernel)
      _ = Self.bind(machine)
      let function = machine.address(1)
      kernel.state.withLock { $0.calls = [] }
      machine.writeConfiguration(function, 0x88, 0x8000, 2)
      let calls = kernel.state.withLock { $0.calls }
      #expect(calls.filter { $0 == "DETACH" || $0 == "RESET" } == ["DETACH", "DETACH", "DETACH", "RESET"])
      #expect(kernel.pasids(of: 0) == [] && kernel.pasids(of: 1) == [1, 2, 3])
      #expect(kernel.attached(0) != nil, "requests without PASID keep their table")
      machine.writeConfiguration(function, Self.control, 1, 2)
      #expect(kernel.pasids(of: 0) == [1, 2, 3] && kernel.nestedRoots == Self.roots)
      machine.writeConfiguration(function, Self.control, 0, 1)
      #expect(kernel.pasids(of: 0) == [])
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  @Test("PASIDs are as wide as the unit's and the kernel's, and without pasid-bits there are none")
  func widths() throws {
    for (unit, kernelBits, expected) in [
      (20, 20, [1, 3, 40]), (2, 20, [1, 3]), (20, 2, [1, 3]), (0, 20, []), (20, 0, []),
    ]
      as [(Int, UInt8, [UInt32])]
    {
      let kernel = Self.makeKernel()
      kernel.state.withLock { $0.devices[0].pasidWidth = kernelBits }
      let machine = try Self.makeBoard(kernel, pasidBits: unit)
      let driver = machine.driver(of: [1])
      if unit > 0 { driver.allowPASIDs() }
      for pasid: UInt64 in [0, 1, 3, 40] { driver.setFirstStage(0x20_0000, pasid: pasid) }
      driver.enable()
      machine.writeConfiguration(machine.address(1), Self.control, 1, 2)
      #expect(kernel.pasids(of: 0) == expected)
      machine.end()
      #expect(kernel.complaints == [])
    }
  }

  @Test("a kernel that attaches no PASIDs is reported for each device, which works without them")
  func olderKernel() throws {
    let kernel = Self.makeKernel()
    kernel.state.withLock { $0.attachesPASIDs = false }
    do {
      let machine = try Self.makeBoard(kernel)
      let error = SystemError("IOMMU_HWPT_ALLOC", "/dev/iommu", code: EOPNOTSUPP)
      #expect(
        machine.notices.all
          == ["0000:01:00.0", "0000:02:00.0"].map { PassthroughNotice(device: $0, reason: .pasidsRefused(error)) })
      _ = Self.bind(machine)
      #expect(kernel.pasids(of: 0) == [] && kernel.nestedRoots == [0x20_0000])
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  private static func live(_ machine: PassthroughBoard) throws {
    let driver = bind(machine)
    driver.setFirstStage(0x30_0000, pasid: 2)
    driver.setFirstStage(0, pasid: 3)
    #expect(driver.invalidateEntry(pasid: 2) && driver.invalidateEntry(pasid: 3))
    #expect(driver.invalidatePages([0x1000, 0x2000], pasid: 1))
    machine.board.unplug(try machine.identity(machine.address(1)))
    machine.end()
  }

  /// In each round another call fails once: the machine either does not start or goes on. Reads and writes of
  /// configuration space are left out: there are thousands of them.
  @Test("a failure of any kernel call leaves nothing behind", arguments: [EIO, EINVAL, EBUSY])
  func nothingLeaksWhicheverCallFails(_ code: Int32) throws {
    let sysfs = PassthroughBoard.sysfs(of: Self.makeKernel())
    let whole = Self.makeKernel()
    try Self.live(Self.makeBoard(whole, sysfs: sysfs))
    let calls = whole.state.withLock { $0.calls }.filter { $0 != "DESTROY" && $0 != "DETACH" }
    var refused = 0
    var lived = 0
    for (number, name) in calls.enumerated() where name != "read" && name != "write" {
      let kernel = Self.makeKernel()
      kernel.state.withLock { state in
        state.callsBeforeFailure = number
        state.failure = code
      }
      do {
        try Self.live(Self.makeBoard(kernel, sysfs: sysfs))
        lived += 1
      } catch StartError.passthrough {
        refused += 1
      }
      #expect(kernel.state.withLock { $0.failed } == name)
      #expect(kernel.complaints == [], "call \(number), \(name)")
    }
    #expect(refused >= 10 && lived >= 20, "\(refused) starts refused, \(lived) machines ran")
  }
}
