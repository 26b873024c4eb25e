import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import Testing
import VFIO
import VTd

@testable import Machine
@testable import Passthrough

/// Tests functions of one IOMMU group on a whole board; the kernel has one page table for the group.
@Suite struct PassthroughGroupTests {
  /// Returns a kernel with two functions of one group and a third function in another.
  private static func makeKernel() -> FakeKernel {
    let kernel = FakeKernel.full(3) { number, device in if number < 2 { device.group = 100 } }
    kernel.state.withLock { $0.hasDMABuffers = true }
    return kernel
  }

  /// A unit without first stage: under first stage the second function is refused.
  private static let plainUnit: IntelIOMMUOptions = {
    var unit = PassthroughBoard.options
    unit.unit.firstStage = false
    return unit
  }()

  private static func places(_ kernel: FakeKernel) -> [FakeKernel.Object?] { (0..<2).map { kernel.translation($0) } }

  // MARK: Without first stage

  @Test func `without an IOMMU of the guest's, functions of a group share its memory`() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i0")])
      #expect(Self.places(kernel) == [.addressSpace, .addressSpace])
      #expect(machine.board.unplug(try machine.identity(machine.address(0))) != nil)
      #expect(kernel.attached(0) == nil && kernel.translation(1) == .addressSpace)
      try machine.board.add(PassthroughBoard.device(0, "i0"), with: machine.configuration)
      #expect(Self.places(kernel) == [.addressSpace, .addressSpace] && machine.notices.all == [])
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  /// A function that the guest's tables block must not reach memory through its sibling's attachment.
  @Test func `while one function of a group is blocked, none of them reaches memory`() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try PassthroughBoard(
        kernel, [Self.plainUnit, PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i0")])
      #expect(Self.places(kernel) == [.addressSpace, .addressSpace])
      // The second function has no context entry.
      let first = machine.driver(of: [1])
      first.setPassThrough()
      first.enable()
      #expect(Self.places(kernel) == [nil, nil])
      #expect(
        machine.notices.all == [PassthroughNotice(device: "0000:01:00.0", reason: .blockedWithSibling("0000:02:00.0"))])
      first.disable()
      #expect(Self.places(kernel) == [.addressSpace, .addressSpace])
      let both = machine.driver(of: [1, 2])
      both.setPassThrough()
      both.enable()
      #expect(Self.places(kernel) == [.addressSpace, .addressSpace])
      both.setFirstStage(0)
      #expect(both.invalidateEntry() && Self.places(kernel) == [nil, nil])
      both.setPassThrough()
      #expect(both.invalidateEntry() && Self.places(kernel) == [.addressSpace, .addressSpace])
      // The first function is blocked first, so the notice names the second one.
      #expect(
        machine.notices.all.dropFirst() == [
          PassthroughNotice(device: "0000:02:00.0", reason: .blockedWithSibling("0000:01:00.0"))
        ], "once")
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  @Test func `removing a blocked function unblocks its siblings, and adding one blocks them`() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try PassthroughBoard(
        kernel, [Self.plainUnit, PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i0")])
      let first = machine.driver(of: [1])
      first.setPassThrough()
      first.enable()
      #expect(Self.places(kernel) == [nil, nil])
      #expect(machine.board.unplug(try machine.identity(machine.address(2))) != nil)
      #expect(kernel.translation(0) == .addressSpace)
      #expect(machine.board.unplug(try machine.identity(machine.address(1))) != nil)
      try machine.board.add(PassthroughBoard.device(1, "i0"), with: machine.configuration)
      // The driver's tables have an entry for the new function's address, and none for the other function's.
      #expect(kernel.translation(1) == .addressSpace)
      try machine.board.add(PassthroughBoard.device(0, "i0"), with: machine.configuration)
      #expect(Self.places(kernel) == [nil, nil])
      first.disable()
      #expect(Self.places(kernel) == [.addressSpace, .addressSpace])
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  /// If the host refuses to attach one of the functions, none stays attached.
  @Test func `a function that cannot be attached again blocks its siblings`() throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try PassthroughBoard(
        kernel, [Self.plainUnit, PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i0")])
      let driver = machine.driver(of: [1, 2])
      driver.enable()
      #expect(Self.places(kernel) == [nil, nil])
      kernel.state.withLock { $0.failingDevices[1] = [VFIO_DEVICE_ATTACH_IOMMUFD_PT: ENOMEM] }
      driver.setPassThrough()
      #expect(driver.invalidateEntry() && Self.places(kernel) == [nil, nil])
      kernel.state.withLock { $0.failingDevices[1] = nil }
      driver.setFirstStage(0)
      driver.invalidateEntry()
      driver.setPassThrough()
      #expect(driver.invalidateEntry() && Self.places(kernel) == [.addressSpace, .addressSpace])
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  // MARK: Refusals

  private static let sharedLine =
    "the guest has 0000:01:00.0 of the same IOMMU group, for which the host has one page table: behind x-flts=on, a "
    + "guest can have only one function of a group"

  @Test func `under first stage a second function of a group is refused at start`() throws {
    let kernel = Self.makeKernel()
    let error = #expect(throws: StartError.self) {
      try PassthroughBoard(
        kernel, [PassthroughBoard.options, PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i0")])
    }
    #expect(error?.description == "-device vfio-pci: 0000:02:00.0: " + Self.sharedLine)
    #expect(kernel.complaints == [])
  }

  @Test(arguments: ["i0", "i1"])
  func `under first stage a second function is refused later, and the first keeps its table`(_ object: String) throws {
    let kernel = Self.makeKernel()
    do {
      let machine = try PassthroughBoard(
        kernel, [PassthroughBoard.options, PassthroughBoard.device(0, "i0"), PassthroughBoard.device(2, "i0")],
        objects: ["i0", "i1"])
      let driver = machine.driver(of: [1, 2])
      driver.setFirstStage(0x20_0000)
      driver.enable()
      let before = kernel.standing
      let error = #expect(throws: StartError.self) {
        try machine.board.add(PassthroughBoard.device(1, object), with: machine.configuration)
      }
      #expect(error?.description == "-device vfio-pci: 0000:02:00.0: " + Self.sharedLine)
      #expect(kernel.standing == before && kernel.nestedRoots == [0x20_0000])
      // Once the first function is gone, the second is accepted.
      #expect(machine.board.unplug(try machine.identity(machine.address(1))) != nil)
      try machine.board.add(PassthroughBoard.device(1, object), with: machine.configuration)
      if case .nested = kernel.translation(1) {} else { Issue.record("not on its first stage") }
      machine.end()
    }
    #expect(kernel.complaints == [])
  }

  /// A sibling behind no unit would follow the other function's tables and keep it from being blocked.
  @Test func `under first stage a sibling without a unit is refused as well`() throws {
    for order in [[0, 1], [1, 0]] {
      let kernel = Self.makeKernel()
      var unit = PassthroughBoard.options
      unit.devices = try DeviceNames(text: "host0")
      let devices = order.map { PassthroughBoard.device($0, "i0") }
      let error = #expect(throws: StartError.self) { try PassthroughBoard(kernel, [unit] + devices) }
      #expect(error?.description.contains("of the same IOMMU group") == true)
      #expect(kernel.complaints == [])
    }
  }

  @Test func `functions of a group must use one iommufd object`() throws {
    let kernel = Self.makeKernel()
    let error = #expect(throws: StartError.self) {
      try PassthroughBoard(
        kernel, [PassthroughBoard.device(0, "i0"), PassthroughBoard.device(1, "i1")], objects: ["i0", "i1"])
    }
    #expect(
      error?.description == "-device vfio-pci: 0000:02:00.0: the guest has 0000:01:00.0 of the same IOMMU group on the "
        + "iommufd object i0, which must have the whole group: use iommufd=i0")
    #expect(kernel.complaints == [])
  }

  /// libvirt passes device files this way.
  @Test func `the group of an inherited device file is found as well`() throws {
    let kernel = Self.makeKernel()
    let descriptors = (0..<2).map { UInt32(kernel.open("/dev/vfio/devices/vfio\($0)", flags: 0)) }
    let error = #expect(throws: StartError.self) {
      try PassthroughBoard(
        kernel,
        [PassthroughBoard.options]
          + descriptors.enumerated().map { number, descriptor in
            PassthroughBoard.device(number, "i0") { options in
              options.host = nil
              options.file = try? DescriptorReference(text: "\(descriptor)")
            }
          })
    }
    #expect(error?.description == "-device vfio-pci: fd \(descriptors[1]): " + Self.sharedLine)
    #expect(kernel.complaints == [])
  }

  @Test func `the refusal names the host driver that has a sibling`() throws {
    let kernel = Self.makeKernel()
    kernel.state.withLock { $0.devices[0].bindingProblem = -EPERM }
    let sysfs = PassthroughBoard.sysfs(of: kernel)
    sysfs.add("0000:01:00.1", driver: "snd_hda_intel", group: "100")
    sysfs.add("0000:00:01.0", driver: "pcieport", group: "100")
    sysfs.addGroup("100", type: "DMA", ["0000:00:01.0", "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"])
    let error = #expect(throws: StartError.self) {
      try PassthroughBoard(kernel, [PassthroughBoard.device(0, "i0")], sysfs: sysfs)
    }
    #expect(
      error?.description.hasPrefix(
        "-device vfio-pci: 0000:01:00.0: the driver snd_hda_intel has 0000:01:00.1 of the same IOMMU group; bind that to "
          + "vfio-pci as well: ") == true)
    #expect(kernel.complaints == [])
  }
}
