import CLinux
import FakeVFIO
import Glibc
import Linux
import Testing
import VFIO
import VTd

@testable import Passthrough

/// Finds a device in sysfs and names each obstacle to opening it.
@Suite struct HostDeviceTests {
  private let kernel = FakeKernel(devices: [.init(path: "/dev/vfio/devices/vfio7")])

  private func refusal(_ device: HostDevice) -> PassthroughError.Problem? {
    do {
      _ = try device.open(calls: kernel)
      return nil
    } catch {
      #expect(error.device == device.address)
      return error.problem
    }
  }

  @Test("a device bound to vfio-pci is found by either form of its address, and opened")
  func aBoundDeviceIsOpened() throws {
    let sysfs = FakeSysfs()
    sysfs.add("0000:01:00.0", driver: "vfio-pci", group: "12", file: "vfio7")
    for name in ["0000:01:00.0", "01:00.0"] {
      let device = try sysfs.find(name)
      #expect(device.address == "0000:01:00.0" && device.driver == "vfio-pci" && device.group == "12")
      #expect(device.deviceFile == "/dev/vfio/devices/vfio7")
      #expect(refusal(device) == nil)
    }
    let byFolder = try HostDevice.find(folder: "\(sysfs.root)/bus/pci/devices/0000:01:00.0")
    #expect(byFolder.address == "0000:01:00.0" && byFolder.deviceFile != nil)
    #expect(kernel.complaints == [])
  }

  @Test(
    "text that is not a PCI address is refused",
    arguments: [
      "", ":", "1:0.0", "01:00", "01:20.0", "01:00.8", "01:00.0.0", "x1:00.0", "0000:0000:01:00.0", "../01:00.0",
    ])
  func notAnAddress(_ name: String) {
    #expect(HostDevice.fullAddress(name) == nil)
    #expect(throws: PassthroughError(name, .notAnAddress)) { try HostDevice.find(address: name) }
  }

  @Test("each obstacle to opening a device is reported")
  func eachObstacleIsReported() throws {
    let sysfs = FakeSysfs()
    sysfs.add("0000:02:00.0", driver: "nvme", group: "3")
    sysfs.add("0000:03:00.0", group: "4")
    sysfs.add("0000:04:00.0", driver: "nvme")
    sysfs.add("0000:05:00.0", driver: "mlx5_vfio_pci", group: "5")
    sysfs.add("0000:06:00.0", driver: "vfio-pci", group: "6", file: "vfio9")
    #expect(throws: PassthroughError("0000:09:00.0", .noSuchDevice)) { try sysfs.find("09:00.0") }
    #expect(refusal(try sysfs.find("02:00.0")) == .notBound(driver: "nvme"))
    #expect(refusal(try sysfs.find("03:00.0")) == .notBound(driver: nil))
    #expect(refusal(try sysfs.find("04:00.0")) == .noIOMMUGroup)
    #expect(refusal(try sysfs.find("05:00.0")) == .noDeviceFile)
    #expect(
      refusal(try sysfs.find("06:00.0")) == .open(SystemError("open", "/dev/vfio/devices/vfio9", code: ENOENT)))
  }

  @Test("a host check reports the state of the host and changes nothing")
  func aHostCheckChangesNothing() throws {
    let sysfs = FakeSysfs()
    sysfs.add("0000:01:00.0", driver: "vfio-pci", group: "12", file: "vfio7")
    sysfs.add("0000:02:00.0", driver: "nvme", group: "3")
    sysfs.addUnit("dmar0", capability: "1d2008c222f0606", extended: "1e80484f00f5b")
    sysfs.addUnit("dmar1", capability: "d2008c222f0606", extended: "480080f00f5a")
    sysfs.write("6.12.1\n", to: "proc/sys/kernel/osrelease")
    sysfs.write("BOOT_IMAGE=/vmlinuz quiet intel_iommu=on,sm_on iommu=pt\n", to: "proc/cmdline")
    sysfs.write(
      "CONFIG_KVM=m\nCONFIG_VFIO=y\n# CONFIG_IOMMUFD is not set\nCONFIG_X=\"y=z\"\n", to: "boot/config-6.12.1")
    sysfs.addGroup("12", type: "DMA-FQ", ["0000:01:00.0", "0000:01:00.1"])
    sysfs.addGroup("3", type: "identity", ["0000:02:00.0"])
    kernel.state.withLock { $0.devices[0].capability |= 1 << 56 }
    let check = HostCheck(devices: ["01:00.0", "02:00.0"], root: sysfs.parent, calls: kernel)
    #expect(check.kernelRelease == "6.12.1" && check.iommufdProblem == nil && check.kvmProblem?.code == ENOENT)
    #expect(check.units.map(\.name) == ["dmar0", "dmar1"])
    #expect(check.units[0].missingForNesting == [] && check.units[0].remapsInterrupts)
    #expect(check.units[1].missingForNesting == ["NEST", "FSTS"])
    #expect(check.devices[0].problem == nil && check.devices[0].nestingProblem == nil)
    #expect(
      check.devices[0].group
        == .init(
          name: "12", type: "DMA-FQ",
          members: [.init(address: "0000:01:00.0", driver: "vfio-pci"), .init(address: "0000:01:00.1", driver: nil)]))
    #expect(check.devices[1].driver == "nvme" && check.groupCounts == ["DMA-FQ": 1, "identity": 1])
    #expect(check.commandLine == ["intel_iommu=on,sm_on", "iommu=pt"])
    let options = try #require(check.kernelOptions)
    #expect(options.map(\.name) == KernelOption.names)
    #expect(
      options.filter { $0.state != .missing } == [
        .init(name: "CONFIG_KVM", state: .module), .init(name: "CONFIG_VFIO", state: .builtIn),
      ])
    #expect(check.devices[1].problem == PassthroughError("0000:02:00.0", .notBound(driver: "nvme")))
    #expect(!check.isReady && !check.hasDeviceFiles)
    #expect(kernel.complaints == [])
    kernel.state.withLock { $0.devices[0].extendedCapability = 0 }
    let plain = HostCheck(devices: ["01:00.0"], root: sysfs.parent, calls: kernel)
    #expect(plain.devices[0].problem == nil)
    #expect(
      plain.devices[0].nestingProblem?.problem == .requirement(.nesting(missing: ["SMTS", "NEST", "FSTS", "SSTS"])))
  }

  @Test("a host check reports a device's PASID width, ATS and page requests, which need its IOMMU and the kernel")
  func aHostCheckReportsSharedVirtualMemory() throws {
    let sysfs = FakeSysfs()
    sysfs.add("0000:01:00.0", driver: "vfio-pci", group: "12", file: "vfio7")
    func check(_ change: (inout FakeKernel.Device) -> Void = { _ in }) throws -> [Int] {
      kernel.state.withLock { state in
        state.devices[0].regions[7] = (4096, 0b011, [])
        state.devices[0].contents[7] = PageRequestChain.image
        state.devices[0].pasidWidth = 16
        state.devices[0].hardwareCapabilities = 0
        state.devices[0].extendedCapability |= 1 << 29 | 1 << 2
        change(&state.devices[0])
      }
      let device = HostCheck(devices: ["01:00.0"], root: sysfs.parent, calls: kernel).devices[0]
      let found = try #require(device.sharedVirtualMemory)
      return [found.pasidWidth, found.hasAddressTranslation ? 1 : 0, found.hasPageRequests ? 1 : 0]
    }
    #expect(try check() == [16, 1, 1])
    #expect(try check { $0.pasidWidth = 0 } == [0, 1, 1])
    #expect(try check { $0.extendedCapability &= ~(1 << 29) } == [16, 1, 0])
    #expect(try check { $0.extendedCapability &= ~(1 << 2) } == [16, 0, 0])
    #expect(try check { $0.hardwareCapabilities = 1 << 3 } == [16, 0, 0])
    #expect(try check { $0.contents[7] = FakeKernel.endpointImage } == [16, 0, 0])
    #expect(kernel.complaints == [])
  }

  /// The advice for EINVAL differs between the calls.
  @Test(
    "a host check names the call that the kernel refused", arguments: [VFIO_DEVICE_BIND_IOMMUFD, IOMMU_GET_HW_INFO])
  func aRefusedCallIsNamed(_ call: UInt32) throws {
    let sysfs = FakeSysfs()
    sysfs.add("0000:01:00.0", driver: "vfio-pci", group: "12", file: "vfio7")
    kernel.state.withLock { $0.failing[call] = EINVAL }
    let problem = try #require(HostCheck(devices: ["01:00.0"], root: sysfs.parent, calls: kernel).devices[0].problem)
    switch problem.problem {
    case .bind(let error): #expect(call == VFIO_DEVICE_BIND_IOMMUFD && error.code == EINVAL)
    case .iommufd(let error): #expect(call == IOMMU_GET_HW_INFO && error.code == EINVAL)
    default: Issue.record("\(problem)")
    }
    #expect(kernel.complaints == [])
  }
}

extension FakeSysfs {
  fileprivate func find(_ name: String) throws(PassthroughError) -> HostDevice {
    try HostDevice.find(address: name, sysfs: root)
  }
}

@Suite struct HostRequirementTests {
  private static let nesting: UInt64 = 1 << 43 | 1 << 46 | 1 << 47 | 1 << 26

  private func host(
    width: UInt64 = 48, ecap: UInt64 = nesting, capability: UInt64 = 1 << 56
  ) -> HardwareInformation {
    HardwareInformation(
      vtd: .init(capability: (width - 1) << 16 | capability, extendedCapability: ecap, hasReadOnlyErratum: true),
      capabilities: [])
  }

  private func unit(_ change: (inout UnitOptions) -> Void = { _ in }) -> UnitOptions {
    var options = UnitOptions()
    options.scalableMode = true
    options.firstStage = true
    options.cachingMode = true
    change(&options)
    return options
  }

  @Test("each capability that the unit needs and the host lacks is named")
  func missingCapabilitiesAreNamed() {
    #expect(HostRequirement.missing(for: unit(), on: host()) == nil)
    #expect(HostRequirement.missing(for: unit(), on: HardwareInformation(vtd: nil, capabilities: [])) == .vtd)
    for (name, bit) in [("SMTS", 43), ("NEST", 26), ("FSTS", 47), ("SSTS", 46)] as [(String, UInt64)] {
      #expect(
        HostRequirement.missing(for: unit(), on: host(ecap: Self.nesting & ~(1 << bit))) == .nesting(missing: [name]))
    }
    #expect(HostRequirement.missing(for: unit(), on: host(width: 39)) == .addressWidth(host: 39, wanted: 48))
    #expect(HostRequirement.missing(for: unit(), on: host(capability: 0)) == .gigabytePages)
    #expect(HostRequirement.missing(for: unit { $0.fs1gp = false }, on: host(capability: 0)) == nil)
    #expect(HostRequirement.missing(for: unit { $0.addressWidth = 57 }, on: host(width: 57)) == .fiveLevels)
    #expect(
      HostRequirement.missing(for: unit { $0.pasidBits = 20 }, on: host(ecap: Self.nesting | 1 << 40 | 15 << 35))
        == .pasidBits(host: 16, wanted: 20))
    #expect(HostRequirement.missing(for: unit { $0.nested = true }, on: host()) == .supervisorRequests)
    #expect(
      HostRequirement.missing(for: unit { $0.nested = true }, on: host(ecap: Self.nesting | 1 << 31))
        == .extendedAccessedFlag)
    #expect(
      HostRequirement.missing(for: unit { $0.nested = true }, on: host(ecap: Self.nesting | 1 << 31 | 1 << 34))
        == .coherentWalks)
    let shared = unit {
      $0.deviceIOTLB = true
      $0.pasidBits = 16
      $0.svm = true
    }
    let pasids: UInt64 = Self.nesting | 1 << 40 | 15 << 35
    #expect(HostRequirement.missing(for: shared, on: host(ecap: pasids)) == .coherentWalks)
    #expect(HostRequirement.missing(for: shared, on: host(ecap: pasids | 1 << 48)) == nil)
    let executing = unit {
      $0.nested = true
      $0.pasidBits = 8
    }
    let able = host(ecap: Self.nesting | 1 << 31 | 1 << 34 | 1 << 40 | 15 << 35 | 1 << 48)
    #expect(HostRequirement.missing(for: executing, on: able) == .executeRequests)
    #expect(HostRequirement.missing(for: unit { $0.nested = true }, on: able) == nil)
    #expect(HostRequirement.missing(for: unit { $0.cachingMode = false }, on: host()) == .cachingMode)
  }

  @Test("without first stage any IOMMU suffices")
  func anyIOMMUSufficesWithoutFirstStage() {
    let plain = unit { $0.firstStage = false }
    #expect(HostRequirement.missing(for: plain, on: HardwareInformation(vtd: nil, capabilities: [])) == nil)
    #expect(HostRequirement.missing(for: plain, on: host(width: 39, ecap: 0, capability: 0)) == nil)
  }
}
