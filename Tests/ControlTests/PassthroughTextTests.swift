import Glibc
import Linux
import Machine
import Passthrough
import Testing

@testable import Control

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
}
