import Linux

/// The reason why a device of the host is not passed through.
public struct PassthroughError: Error, Hashable, Sendable {
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
    /// VFIO_DEVICE_BIND_IOMMUFD failed.
    case bind(SystemError)
    /// Another function of the device's IOMMU group is bound to a driver of the host.
    case groupHasDriver(sibling: String, driver: String)
    /// The machine has another function of the device's IOMMU group, and one of the two is behind a unit with first
    /// stage.
    case sharedGroup(sibling: String)
    /// The machine has another function of the device's IOMMU group, on another iommufd object.
    case groupOfOtherObject(sibling: String, object: String)
    case map(SystemError)
    case attach(SystemError)
    /// RAM cannot be pinned. The values are the limit (nil for no limit) and the size of RAM, in bytes.
    case lockedMemory(limit: UInt64?, wanted: UInt64)
    /// KVM refused the registration of the device's file.
    case acceleratorRegistration(SystemError)
    /// The file of `romfile=` cannot be used.
    case romFile(String, SystemError)
    case romFileSize(String, limit: Int)
    case registers(SystemError)
    case interrupts(SystemError)
    /// The accelerator has no eventfds for interrupts.
    case accelerator
    case requirement(HostRequirement)
    /// `ats=on` is impossible.
    case addressTranslation(AddressTranslationProblem)
    /// Another capability is at the offset that the user chose for the PASID capability.
    case pasidOffset(Int)
  }

  /// The device as the options name it.
  public let device: String
  public let problem: Problem

  public init(_ device: String, _ problem: Problem) {
    self.device = device
    self.problem = problem
  }
}
