import Glibc
import Linux
import Machine
import Testing

@testable import Control
@testable import Passthrough

/// Compares the text for devices of the host that are not passed through.
@Suite struct PassthroughTextTests {
  private func line(_ problem: PassthroughError.Problem, _ device: String = "0000:01:00.0") -> String {
    ErrorText.text(for: StartError.passthrough(PassthroughError(device, problem)))
  }

  @Test("a device that another driver has is refused with the commands that bind it to vfio-pci")
  func theCommandsThatBindADevice() {
    #expect(
      line(.notBound(driver: "nvme"), "0000:02:00.0")
        == "-device vfio-pci: 0000:02:00.0: the driver nvme has it; bind it to vfio-pci: modprobe vfio-pci; "
        + "echo 0000:02:00.0 > /sys/bus/pci/devices/0000:02:00.0/driver/unbind; "
        + "echo vfio-pci > /sys/bus/pci/devices/0000:02:00.0/driver_override; "
        + "echo 0000:02:00.0 > /sys/bus/pci/drivers_probe")
  }

  /// Errors that the user can resolve.
  @Test(
    "each refusal names its remedy in one line",
    arguments: [
      (
        PassthroughError.Problem.notBound(driver: nil),
        "no driver has it; bind it to vfio-pci: modprobe vfio-pci; echo vfio-pci"
      ),
      (.noIOMMUGroup, "no IOMMU of the host is in front of it"),
      (.noDeviceFile, "CONFIG_VFIO_DEVICE_CDEV"),
      (.open(SystemError("open", "/dev/vfio/devices/vfio9", code: ENOENT)), "/dev/vfio/devices/vfio9: No such file"),
      (.iommufd(SystemError("open", "/dev/iommu", code: ENOENT)), "CONFIG_IOMMUFD"),
      (.bind(SystemError("VFIO_DEVICE_BIND_IOMMUFD", code: EPERM)), "interrupt remapping"),
      (.bind(SystemError("VFIO_DEVICE_BIND_IOMMUFD", code: EBUSY)), "IOMMU group is in use"),
      (
        .lockedMemory(limit: 8 << 20, wanted: 1 << 30),
        "1024 MiB of RAM cannot be pinned for it: the memory lock limit is 8"
      ),
      (.acceleratorRegistration(SystemError("KVM_CREATE_DEVICE", "vfio", code: ENODEV)), "CONFIG_KVM_VFIO"),
      (.accelerator, "-accel kvm"),
    ])
  func refusalsNameTheirRemedy(_ problem: PassthroughError.Problem, _ words: String) {
    let line = line(problem)
    #expect(line.hasPrefix("-device vfio-pci: 0000:01:00.0: ") && line.contains(words) && !line.contains("\n"))
  }

  /// Both kernels answer the request with ENOTTY.
  @Test(
    "the notice about BARs out of reach names the kernel's age or the missing option",
    arguments: [
      ("6.12.48", "; this needs Linux 6.19 or later, and the host has 6.12.48"),
      ("6.18.0-rc3", "; this needs Linux 6.19 or later, and the host has 6.18.0-rc3"),
      (
        "6.19-rc1",
        "; the host's kernel needs CONFIG_VFIO_PCI_DMABUF, which CONFIG_PCI_P2PDMA and CONFIG_DMA_SHARED_BUFFER enable"
      ),
      (
        "7.3.4+deb13-amd64",
        "; the host's kernel needs CONFIG_VFIO_PCI_DMABUF, which CONFIG_PCI_P2PDMA and CONFIG_DMA_SHARED_BUFFER enable"
      ),
      (
        "unknown",
        "; the host's kernel needs CONFIG_VFIO_PCI_DMABUF, which CONFIG_PCI_P2PDMA and CONFIG_DMA_SHARED_BUFFER enable"
      ),
    ])
  func whyPeersDoNotReachBARs(_ release: String, _ reason: String) {
    let error = SystemError("VFIO_DEVICE_FEATURE_DMA_BUF", "/dev/vfio/devices/vfio1", code: ENOTTY)
    let begin = "0000:02:00.0: other devices of the guest cannot reach its BARs (peer-to-peer): "
    func line(_ error: SystemError) -> String {
      ErrorText.line(
        for: PassthroughNotice(device: "0000:02:00.0", reason: .outOfPeersReach(error, kernelRelease: release)))
    }
    #expect(line(error).contains(begin + "/dev/vfio/devices/vfio1: "))
    #expect(line(error).hasSuffix(reason + "\n"))
    // Another error says nothing about the kernel.
    #expect(!line(SystemError("IOMMU_IOAS_MAP_FILE", code: ENOMEM)).contains("kernel"))
    #expect(!line(SystemError("IOMMU_IOAS_MAP_FILE", code: ENOMEM)).contains("Linux"))
  }
}
