import Passthrough

/// Texts for devices of the host: errors of passthrough, and notices while the guest runs.
extension ErrorText {
  static func line(for notice: PassthroughNotice) -> String {
    line([], "\(notice.device): \(text(for: notice.reason))")
  }

  private static func text(for reason: PassthroughNotice.Reason) -> String {
    switch reason {
    case .guestSecondStage:
      "its DMA is blocked: the guest translates it by second-stage tables, which the host cannot use; set x-flts=on, or "
        + "boot the guest with iommu=pt or intel_iommu=off"
    case .supervisorRequests:
      "its DMA is blocked: the guest asks for supervisor privilege without PASID, which no host supports"
    case .hostRefused(let error): "its DMA is blocked: the host refused the guest's tables: \(text(for: error))"
    case .blockedWithSibling(let sibling):
      "its DMA is blocked while that of \(sibling) is: both are in one IOMMU group, which the host blocks as a whole"
    case .pageRequestsRefused(let error): "the guest gets none of its page requests: \(text(for: error))"
    case .pasidSecondStage:
      "its DMA with a PASID is blocked: the guest translates it by second-stage tables, which the host cannot use"
    case .tooManyPASIDs(let limit):
      "the guest uses more than \(limit) PASIDs on it; its DMA with the others is blocked"
    case .pasidRefused(let error):
      "its DMA with a PASID is blocked: the host refused the guest's tables: \(text(for: error))"
    case .pasidsRefused(let error):
      "the guest cannot use PASIDs on it; that takes Linux 6.15 or later on the host: \(text(for: error))"
    case .noRoomForPASIDs:
      "the guest cannot use PASIDs on it: its configuration space has no room for the capability; x-vpasid-cap-offset= "
        + "chooses a place"
    case .error: "the device reports an unrecoverable error; the guest is stopped"
    case .request:
      "the host wants the device back: the guest is asked to release it, and loses it after x-req-patience milliseconds"
    case .notResetBeside(let others):
      "the guest gets the device without a reset, in the state in which its last user left it: only a bus reset would "
        + "work, but that also resets \(others.joined(separator: ", ")), which the guest uses; the next reset of the "
        + "machine resets all of them"
    case .notReset(let error): "the device could not be reset: \(text(for: error))"
    case .interruptsRefused(let error): "the guest does not get all of its interrupts: \(text(for: error))"
    case .outOfPeersReach(let error, let release):
      "other devices of the guest cannot reach its BARs (peer-to-peer): \(text(for: error))"
        + (error.code == 25 /* ENOTTY */ ? "; " + missingPeerToPeer(release) : "")
    }
  }

  /// Returns what a kernel lacks that does not know the request to export a BAR: it is too old, or was built without the
  /// option.
  private static func missingPeerToPeer(_ release: String) -> String {
    let numbers = release.split(separator: ".").prefix(2).compactMap { Int($0.prefix { $0.isNumber }) }
    if numbers.count == 2, numbers.lexicographicallyPrecedes([6, 19]) {
      return "this needs Linux 6.19 or later, and the host has \(release)"
    }
    return "the host's kernel needs CONFIG_VFIO_PCI_DMABUF, which CONFIG_PCI_P2PDMA and CONFIG_DMA_SHARED_BUFFER enable"
  }

  /// Returns the problem and its solution, without the names of the device and the option.
  static func text(for error: PassthroughError) -> String {
    switch error.problem {
    case .notAnAddress: "not the address of a PCI function, such as 0000:01:00.0"
    case .noSuchDevice: "there is no such device on this host; lspci -D lists them"
    case .noIOMMUGroup: "no IOMMU of the host is in front of it: boot the host with intel_iommu=on,sm_on"
    case .notBound(let driver):
      (driver.map { "the driver \($0) has it" } ?? "no driver has it") + "; bind it to vfio-pci: "
        + bindCommand(error.device, driver: driver)
    case .noDeviceFile:
      "it has no /dev/vfio/devices file: the host's kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6 or later)"
    case .open(let error): text(for: error)
    case .iommufd(let error) where error.code == 2 /* ENOENT */:
      "there is no /dev/iommu: the host's kernel needs CONFIG_IOMMUFD"
    case .iommufd(let error): text(for: error)
    case .groupHasDriver(let sibling, let driver):
      "the driver \(driver) has \(sibling) of the same IOMMU group; bind that to vfio-pci as well: "
        + bindCommand(sibling, driver: driver)
    case .sharedGroup(let sibling):
      "the guest has \(sibling) of the same IOMMU group, for which the host has one page table: behind x-flts=on, a "
        + "guest can have only one function of a group"
    case .groupOfOtherObject(let sibling, let object):
      "the guest has \(sibling) of the same IOMMU group on the iommufd object \(object), which must have the whole "
        + "group: use iommufd=\(object)"
    case .bind(let error) where error.code == 1 /* EPERM */:
      "the host's interrupts are not isolated: the host needs interrupt remapping (intremap=on, and an IOMMU that "
        + "supports it)"
    case .bind(let error) where error.code == 22 /* EINVAL */:
      "another process has it open, or the host's IOMMU cannot keep its DMA coherent with the CPUs' caches"
    case .bind(let error) where error.code == 16 /* EBUSY */:
      "its IOMMU group is in use: another device of the group is bound to another driver, or another process has it open"
    case .bind(let error): "the kernel does not bind it to iommufd: \(text(for: error))"
    case .lockedMemory(let limit?, let wanted):
      "the guest's \(wanted >> 20) MiB of RAM cannot be pinned for it: the memory lock limit is \(limit >> 20) MiB; raise "
        + "it (ulimit -l), or run as root"
    case .lockedMemory(nil, let wanted):
      "the guest's \(wanted >> 20) MiB of RAM cannot be pinned for it: the host does not have that much free memory"
    case .acceleratorRegistration(let error):
      "KVM does not accept it: \(text(for: error)): the host's kernel needs CONFIG_KVM_VFIO"
    case .romFile(let path, let error): "romfile=\(path): \(reason(of: error))"
    case .romFileSize(let path, let limit): "romfile=\(path): a ROM has 1 to \(limit) bytes"
    case .map(let error): "RAM cannot be mapped for it: \(text(for: error))"
    case .attach(let error): "the kernel does not attach it to the guest's memory: \(text(for: error))"
    case .registers(let error): "its registers cannot be reached: \(text(for: error))"
    case .interrupts(let error): "its interrupts cannot be set up: \(text(for: error))"
    case .accelerator: "it needs -accel kvm"
    case .requirement(let requirement): text(for: requirement)
    case .addressTranslation(.unit): "ats=on needs an intel-iommu with device-iotlb=on in front of it"
    case .addressTranslation(.host): "ats=on: the host's kernel or IOMMU has no ATS for it"
    case .addressTranslation(.device): "ats=on: it has no ATS capability"
    case .pasidOffset(let offset):
      "x-vpasid-cap-offset=0x\(String(offset, radix: 16)): another of its capabilities is there"
    }
  }

  /// Returns the shell command that binds a device to vfio-pci.
  private static func bindCommand(_ device: String, driver: String?) -> String {
    let folder = "/sys/bus/pci/devices/\(device)"
    let unbind = driver == nil ? "" : "echo \(device) > \(folder)/driver/unbind; "
    return "modprobe vfio-pci; \(unbind)echo vfio-pci > \(folder)/driver_override; "
      + "echo \(device) > /sys/bus/pci/drivers_probe"
  }

  private static func text(for requirement: HostRequirement) -> String {
    switch requirement {
    case .vtd: "the host's IOMMU is not VT-d, which x-flts=on needs; leave x-flts out"
    case .nesting(let missing):
      "the host's IOMMU has no nested translation (ECAP lacks \(missing.joined(separator: ", "))), which x-flts=on "
        + "needs; leave x-flts out"
    case .addressWidth(let host, let wanted):
      "the host's IOMMU translates \(host) bits (CAP.MGAW), and aw-bits=\(wanted) asks for more"
    case .gigabytePages: "the host's IOMMU has no 1 GiB pages in first stage (CAP.FS1GP): add fs1gp=off"
    case .fiveLevels: "the host's IOMMU has no 5-level first stage (CAP.FS5LP), which aw-bits=57 offers"
    case .pasidBits(let host, let wanted):
      "the host's IOMMU has \(host) bits of PASID (ECAP.PSS), and pasid-bits=\(wanted) asks for more"
    case .supervisorRequests: "the host's IOMMU has no supervisor requests (ECAP.SRS), which x-nested=on offers"
    case .extendedAccessedFlag: "the host's IOMMU has no extended accessed flags (ECAP.EAFS), which x-nested=on offers"
    case .coherentWalks:
      "the host's IOMMU does not snoop the CPUs' caches when it walks tables (ECAP.SMPWC), which svm=on and x-nested=on "
        + "offer"
    case .executeRequests:
      "iommufd's nested page tables do not support execute requests, which x-nested=on with pasid-bits offers: leave "
        + "one of them out"
    case .cachingMode:
      "the intel-iommu in front of it needs caching-mode=on, or no caching-mode at all: without caching mode, the guest "
        + "does not invalidate when an entry becomes present"
    }
  }
}
