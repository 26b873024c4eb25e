import Hardware
import Linux

/// Why a device of the host is not passed through. Its description is one line: the device, what is missing, and what
/// to do about it.
public struct PassthroughError: Error, Hashable, Sendable, CustomStringConvertible {
  public enum Problem: Error, Hashable, Sendable {
    /// The text is not a PCI address.
    case notAnAddress
    case noSuchDevice
    /// The device is behind no IOMMU of the host.
    case noIOMMUGroup
    /// The device is bound to another driver, or to none.
    case notBound(driver: String?)
    /// The device is bound to vfio-pci, but has no device file.
    case noDeviceFile
    case open(SystemError)
    case iommufd(SystemError)
    /// VFIO_DEVICE_BIND_IOMMUFD.
    case bind(SystemError)
    /// Another function of its IOMMU group is bound to a driver of the host.
    case groupHasDriver(sibling: String, driver: String)
    /// The machine has another function of its IOMMU group, and one of them is behind a unit with first stage.
    case sharedGroup(sibling: String)
    /// The machine has another function of its IOMMU group, on another iommufd object.
    case groupOfOtherObject(sibling: String, object: String)
    case map(SystemError)
    case attach(SystemError)
    /// RAM cannot be pinned: the limit and the size of RAM, in bytes; nil for no limit.
    case lockedMemory(limit: UInt64?, wanted: UInt64)
    /// KVM refused the registration of the device's file.
    case acceleratorRegistration(SystemError)
    /// `romfile=`.
    case romFile(String, SystemError)
    case romFileSize(String, limit: Int)
    case registers(SystemError)
    case interrupts(SystemError)
    /// The accelerator has no eventfds for interrupts.
    case accelerator
    case requirement(HostRequirement)
    /// Another function has its address on the guest's bus.
    case addressInUse(RequesterID)
  }

  /// As the options name it.
  public let device: String
  public let problem: Problem

  public init(_ device: String, _ problem: Problem) {
    self.device = device
    self.problem = problem
  }

  public var description: String { "-device vfio-pci: \(device): \(text)" }

  /// Without the device and the option.
  public var text: String {
    switch problem {
    case .notAnAddress: "not the address of a PCI function, such as 0000:01:00.0"
    case .noSuchDevice: "there is no such device on this host; lspci -D lists them"
    case .noIOMMUGroup: "no IOMMU of the host is in front of it: boot the host with intel_iommu=on,sm_on"
    case .notBound(let driver):
      (driver.map { "the driver \($0) has it" } ?? "no driver has it") + "; bind it to vfio-pci: "
        + Self.bindCommand(device, driver: driver)
    case .noDeviceFile:
      "it has no /dev/vfio/devices file: the host's kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6 or later)"
    case .open(let error): "\(error)"
    case .iommufd(let error) where error.code == 2 /* ENOENT */:
      "there is no /dev/iommu: the host's kernel needs CONFIG_IOMMUFD"
    case .iommufd(let error): "\(error)"
    case .groupHasDriver(let sibling, let driver):
      "the driver \(driver) has \(sibling) of the same IOMMU group; bind that to vfio-pci as well: "
        + Self.bindCommand(sibling, driver: driver)
    case .sharedGroup(let sibling):
      "the guest has \(sibling) of the same IOMMU group, for which the host has one page table: behind x-flts=on a guest "
        + "has only one function of a group"
    case .groupOfOtherObject(let sibling, let object):
      "the guest has \(sibling) of the same IOMMU group on the iommufd object \(object), which has all of the group: use "
        + "iommufd=\(object)"
    case .bind(let error) where error.code == 1 /* EPERM */:
      "the host's interrupts are not isolated: it needs interrupt remapping (intremap=on, and an IOMMU that has it)"
    case .bind(let error) where error.code == 22 /* EINVAL */:
      "somebody else has it open, or the host's IOMMU cannot keep its DMA coherent with the CPUs' caches"
    case .bind(let error) where error.code == 16 /* EBUSY */:
      "its IOMMU group is in use: another device of the group is bound to another driver, or somebody has it open"
    case .bind(let error): "the kernel does not bind it to iommufd: \(error)"
    case .lockedMemory(let limit?, let wanted):
      "the guest's \(wanted >> 20) MiB of RAM cannot be pinned for it: the memory lock limit is \(limit >> 20) MiB; raise "
        + "it (ulimit -l), or run as root"
    case .lockedMemory(nil, let wanted):
      "the guest's \(wanted >> 20) MiB of RAM cannot be pinned for it: the host has not as much memory free"
    case .acceleratorRegistration(let error):
      "KVM does not take it: \(error): the host's kernel needs CONFIG_KVM_VFIO"
    case .romFile(let path, let error): "romfile=\(path): \(error.reason)"
    case .romFileSize(let path, let limit): "romfile=\(path): a ROM has 1 to \(limit) bytes"
    case .map(let error): "RAM cannot be mapped for it: \(error)"
    case .attach(let error): "the kernel does not attach it to the guest's memory: \(error)"
    case .registers(let error): "its registers cannot be reached: \(error)"
    case .interrupts(let error): "its interrupts cannot be had: \(error)"
    case .accelerator: "it needs -accel kvm"
    case .requirement(let requirement): requirement.description
    case .addressInUse(let address): "another function has the guest's \(address)"
    }
  }

  /// What a person types to give it to vfio-pci.
  static func bindCommand(_ device: String, driver: String?) -> String {
    let folder = "/sys/bus/pci/devices/\(device)"
    let unbind = driver == nil ? "" : "echo \(device) > \(folder)/driver/unbind; "
    return "modprobe vfio-pci; \(unbind)echo vfio-pci > \(folder)/driver_override; "
      + "echo \(device) > /sys/bus/pci/drivers_probe"
  }
}
