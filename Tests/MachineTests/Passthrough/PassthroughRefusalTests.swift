import CLinux
import FakeVFIO
import Glibc
import Hardware
import Linux
import Testing
import VFIO
import VTd

@testable import Machine

/// Each obstacle on the host causes one error line, which names the device, the missing feature and the option that
/// requires it. A refusal while the guest runs has the same line and leaves the machine unchanged.
@Suite struct PassthroughRefusalTests {
  struct Case: CustomTestStringConvertible, Sendable {
    let testDescription: String
    /// The text after `-device vfio-pci: 0000:02:00.0: `.
    let line: String
    let unit: @Sendable (inout IntelIOMMUOptions) -> Void
    let lockedMemory: UInt64?
    let change: @Sendable (inout FakeKernel.State) -> Void
    let options: @Sendable (inout VFIOPCIOptions) -> Void

    init(
      _ name: String, _ line: String, host change: @escaping @Sendable (inout FakeKernel.State) -> Void = { _ in },
      lockedMemory: UInt64? = nil, unit: @escaping @Sendable (inout IntelIOMMUOptions) -> Void = { _ in },
      options: @escaping @Sendable (inout VFIOPCIOptions) -> Void = { _ in }
    ) {
      testDescription = name
      self.line = line
      self.lockedMemory = lockedMemory
      self.unit = unit
      self.options = options
      self.change = change
    }
  }

  private static func lacks(_ bit: UInt64) -> @Sendable (inout FakeKernel.State) -> Void {
    { $0.devices[1].extendedCapability &= ~(1 << bit) }
  }

  static let cases: [Case] = [
    Case("not VT-d", "the host's IOMMU is not VT-d, which x-flts=on needs; leave x-flts out") {
      $0.devices[1].isVTd = false
    },
    Case(
      "no NEST",
      "the host's IOMMU has no nested translation (ECAP lacks NEST), which x-flts=on needs; leave x-flts out",
      host: lacks(26)),
    Case(
      "no first stage",
      "the host's IOMMU has no nested translation (ECAP lacks FSTS), which x-flts=on needs; leave x-flts out",
      host: lacks(47)),
    Case("address width", "the host's IOMMU translates 39 bits (CAP.MGAW), and aw-bits=48 asks for more") {
      $0.devices[1].capability = 38 << 16
    },
    Case(
      "1 GiB pages", "the host's IOMMU has no 1 GiB pages in first stage (CAP.FS1GP): add fs1gp=off",
      host: { $0.devices[0].capability |= 1 << 56 }, unit: { $0.unit.fs1gp = true }),
    Case(
      "bits of PASID", "the host's IOMMU has 0 bits of PASID (ECAP.PSS), and pasid-bits=8 asks for more",
      host: { $0.devices[0].extendedCapability |= 1 << 40 | 19 << 35 }, unit: { $0.unit.pasidBits = 8 }),
    Case(
      "coherent walks",
      "the host's IOMMU does not snoop the CPUs' caches when it walks tables (ECAP.SMPWC), which svm=on and x-nested=on "
        + "offer",
      host: { state in
        for number in 0..<2 { state.devices[number].extendedCapability |= 1 << 40 | 19 << 35 | 1 << 48 }
        state.devices[1].extendedCapability &= ~(1 << 48)
      },
      unit: {
        $0.unit.deviceIOTLB = true
        $0.unit.pasidBits = 8
        $0.unit.svm = true
      }),
    Case(
      "interrupt remapping",
      "the host's interrupts are not isolated: the host needs interrupt remapping (intremap=on, and an IOMMU that "
        + "supports it)"
    ) { $0.devices[1].bindingProblem = -EPERM },
    Case(
      "group in use",
      "its IOMMU group is in use: another device of the group is bound to another driver, or another process has it open"
    ) { $0.devices[1].bindingProblem = -EBUSY },
    Case(
      "open already",
      "another process has it open, or the host's IOMMU cannot keep its DMA coherent with the CPUs' caches"
    ) { $0.devices[1].boundFile = 1 },
    Case(
      "not attached",
      "the kernel does not attach it to the guest's memory: /dev/vfio/devices/vfio1: Operation not supported"
    ) { $0.failingDevices[1] = [VFIO_DEVICE_ATTACH_IOMMUFD_PT: EOPNOTSUPP] },
    Case(
      "memory lock limit",
      "the guest's 16 MiB of RAM cannot be pinned for it: the memory lock limit is 8 MiB; raise it (ulimit -l), or run "
        + "as root",
      host: { $0.failingDevices[1] = [VFIO_DEVICE_ATTACH_IOMMUFD_PT: ENOMEM] }, lockedMemory: 8 << 20),
    Case("no memory", "the guest's 16 MiB of RAM cannot be pinned for it: the host does not have that much free memory")
    {
      $0.failingDevices[1] = [VFIO_DEVICE_ATTACH_IOMMUFD_PT: ENOMEM]
    },
    Case("a file gone", "/dev/vfio/devices/vfio1: No such file or directory") { $0.devices[1].path = "/gone" },
    Case(
      "no such ROM", "romfile=/nonexistent: No such file or directory", options: { $0.romFile = "/nonexistent" }),
    Case("an empty ROM", "romfile=/dev/null: a ROM has 1 to 16777216 bytes", options: { $0.romFile = "/dev/null" }),
    Case("no end of a ROM", "romfile=/dev/zero: a ROM has 1 to 16777216 bytes", options: { $0.romFile = "/dev/zero" }),
    Case(
      "no registers",
      "its registers cannot be reached: configuration space of /dev/vfio/devices/vfio1: Input/output error"
    ) { $0.devices[1].contents[7] = [] },
  ]

  private static func makeKernel() -> FakeKernel {
    FakeKernel.full(2) { number, device in device.capability = 47 << 16 }
  }

  private static func devices(_ test: Case) -> [any DeviceOptions] {
    var unit = PassthroughBoard.options
    test.unit(&unit)
    return [unit, PassthroughBoard.device(0, "i0")]
  }

  @Test("each obstacle is refused at the start with its error line", arguments: cases)
  func atStart(_ test: Case) throws {
    let kernel = Self.makeKernel()
    kernel.state.withLock { test.change(&$0) }
    let sysfs = PassthroughBoard.sysfs(of: Self.makeKernel())
    let error = #expect(throws: StartError.self) {
      try PassthroughBoard(
        kernel, Self.devices(test) + [PassthroughBoard.device(1, "i0", test.options)],
        lockedMemory: test.lockedMemory, sysfs: sysfs)
    }
    #expect(error?.description == "-device vfio-pci: 0000:02:00.0: " + test.line)
    kernel.state.withLock { $0.devices[1].boundFile = nil }
    #expect(kernel.complaints == [])
  }

  /// The other device keeps its tables, and nothing of the refused device remains.
  @Test("each obstacle is refused while the guest runs, and the machine stays unchanged", arguments: cases)
  func whileTheGuestRuns(_ test: Case) throws {
    let kernel = Self.makeKernel()
    kernel.state.withLock { test.change(&$0) }
    let machine = try PassthroughBoard(
      kernel, Self.devices(test), lockedMemory: test.lockedMemory, sysfs: PassthroughBoard.sysfs(of: Self.makeKernel()))
    let driver = machine.driver(of: [1])
    driver.setFirstStage(0x20_0000)
    driver.enable()
    func state() -> [String] {
      kernel.state.withLock { state in
        state.files.map { "\($0)" }.sorted() + state.objects.map { "\($0)" }.sorted() + ["\(state.hostMappings)"]
          + ["\(state.devices[0].attachedTo ?? 0)"]
      } + machine.accelerator.registry.all.map { "\($0)" }
    }
    let before = state()
    let error = #expect(throws: StartError.self) {
      try machine.board.add(
        PassthroughBoard.device(1, "i0") {
          test.options(&$0)
          $0.function.address = RequesterID(bus: 0, device: 9, function: 0)
        }, with: machine.configuration)
    }
    #expect(error?.description == "-device vfio-pci: 0000:02:00.0: " + test.line)
    #expect(state() == before)
    #expect(machine.readConfiguration(RequesterID(bus: 0, device: 9, function: 0), 0) == 0xffff_ffff)
    driver.setFirstStage(0x30_0000)
    #expect(driver.invalidateEntry())
    machine.end()
    kernel.state.withLock { $0.devices[1].boundFile = nil }
    #expect(kernel.complaints == [])
  }

  /// These refusals follow from sysfs, before any call.
  @Test("a device that sysfs shows as unusable is refused with the remedy")
  func unusableDevicesAreRefused() throws {
    let kernel = Self.makeKernel()
    let sysfs = FakeSysfs()
    sysfs.add("0000:01:00.0", driver: "nvme", group: "1")
    sysfs.add("0000:02:00.0", driver: "vfio-pci", group: "1")
    func line(_ number: Int) -> String? {
      let error = #expect(throws: StartError.self) {
        try PassthroughBoard(kernel, [PassthroughBoard.device(number, "i0")], sysfs: sysfs)
      }
      return error?.description
    }
    #expect(line(0)?.hasPrefix("-device vfio-pci: 0000:01:00.0: the driver nvme has it; bind it to vfio-pci: ") == true)
    #expect(
      line(1) == "-device vfio-pci: 0000:02:00.0: it has no /dev/vfio/devices file: the host's kernel needs "
        + "CONFIG_VFIO_DEVICE_CDEV (Linux 6.6 or later)")
    #expect(
      line(2) == "-device vfio-pci: 0000:03:00.0: there is no such device on this host; lspci -D lists them")
    #expect(kernel.complaints == [])
  }

  @Test("the refusal names a missing or inaccessible /dev/iommu")
  func withoutIOMMUFD() throws {
    for (code, words) in [
      (ENOENT, "there is no /dev/iommu: the host's kernel needs CONFIG_IOMMUFD"),
      (EACCES, "/dev/iommu: Permission denied"),
    ] {
      let kernel = Self.makeKernel()
      kernel.state.withLock { $0.iommufdProblem = code }
      let error = #expect(throws: StartError.self) {
        try PassthroughBoard(kernel, [PassthroughBoard.device(1, "i0")])
      }
      #expect(error?.description == "-device vfio-pci: 0000:02:00.0: " + words)
      #expect(kernel.complaints == [])
    }
  }
}
