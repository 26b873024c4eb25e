import CLinux
import Glibc
import Linux
import Synchronization

/// An object to which a device can be attached: a page table, or an address space, for which the kernel then makes a
/// page table.
public protocol AttachmentTarget: AnyObject, Sendable {
  var id: UInt32 { get }
}

/// A PCI device that this process owns through vfio-pci's device file (<linux/vfio.h>): it is bound to an iommufd and
/// attached to page tables, and gives access to its regions and interrupts.
///
/// The deinit detaches the device before its page tables can be destroyed, even if the device's file stays open
/// elsewhere.
///
/// Lock order: code that holds `attachments` takes no other lock.
public final class VFIODevice: Sendable {
  public let file: KernelFile
  public let iommufd: IOMMUFD
  /// The device's number within the iommufd.
  public let id: UInt32
  /// VFIO_DEVICE_FLAGS_RESET: the kernel can reset the device.
  public let hasReset: Bool
  /// The number of interrupt types (VFIO_PCI_*_IRQ_INDEX).
  public let interruptTypeCount: UInt32
  /// The target of requests with each PASID; nil is the key of requests without PASID.
  private let attachments = Mutex<[UInt32?: any AttachmentTarget]>([:])

  /// Binds the device (VFIO_DEVICE_BIND_IOMMUFD). Until then the kernel refuses every other request.
  public init(file: KernelFile, to iommufd: IOMMUFD) throws(SystemError) {
    var bind = vfio_device_bind_iommufd()
    bind.argsz = byteCount(of: vfio_device_bind_iommufd.self)
    bind.iommufd = iommufd.file.descriptor
    try file.request("VFIO_DEVICE_BIND_IOMMUFD", VFIO_DEVICE_BIND_IOMMUFD, &bind)
    var info = vfio_device_info()
    info.argsz = byteCount(of: vfio_device_info.self)
    try file.request("VFIO_DEVICE_GET_INFO", VFIO_DEVICE_GET_INFO, &info)
    guard info.flags & UInt32(VFIO_DEVICE_FLAGS_PCI) != 0 else {
      throw SystemError("VFIO_DEVICE_GET_INFO", file.name, code: ENODEV, cause: .notPCIDevice)
    }
    self.file = file
    self.iommufd = iommufd
    id = bind.out_devid
    hasReset = info.flags & UInt32(VFIO_DEVICE_FLAGS_RESET) != 0
    interruptTypeCount = info.num_irqs
  }

  deinit { try? detachAll() }

  // MARK: Page tables

  /// Attaches the device's requests without PASID, or those with one PASID, and replaces their former page table
  /// (VFIO_DEVICE_ATTACH_IOMMUFD_PT). The device keeps a reference to the target, so that the target is not destroyed
  /// while it is attached.
  /// - Parameter pasid: not 0: the kernel uses PASID 0 of the host's tables for requests without PASID.
  public func attach(to target: any AttachmentTarget, pasid: UInt32? = nil) throws(SystemError) {
    var request = vfio_device_attach_iommufd_pt()
    request.argsz = byteCount(of: vfio_device_attach_iommufd_pt.self)
    request.pt_id = target.id
    if let pasid {
      request.flags = UInt32(VFIO_DEVICE_ATTACH_PASID)
      request.pasid = pasid
    }
    let replaced = try attachments.withLock { (attachments) throws(SystemError) in
      try file.request("VFIO_DEVICE_ATTACH_IOMMUFD_PT", VFIO_DEVICE_ATTACH_IOMMUFD_PT, &request)
      return attachments.updateValue(target, forKey: pasid)
    }
    // Release the former table without the lock: its destruction is a system call.
    _ = replaced
  }

  /// Detaches the requests without PASID, or those with one PASID: the host's IOMMU refuses them from now on
  /// (VFIO_DEVICE_DETACH_IOMMUFD_PT).
  public func detach(pasid: UInt32? = nil) throws(SystemError) {
    var request = vfio_device_detach_iommufd_pt()
    request.argsz = byteCount(of: vfio_device_detach_iommufd_pt.self)
    if let pasid {
      request.flags = UInt32(VFIO_DEVICE_DETACH_PASID)
      request.pasid = pasid
    }
    let former = try attachments.withLock { (attachments) throws(SystemError) -> (any AttachmentTarget)? in
      guard attachments[pasid] != nil else { return nil }
      try file.request("VFIO_DEVICE_DETACH_IOMMUFD_PT", VFIO_DEVICE_DETACH_IOMMUFD_PT, &request)
      return attachments.removeValue(forKey: pasid)
    }
    _ = former
  }

  /// Detaches all of the device's requests, first those with a PASID, then those without.
  /// - Throws: the first error. The other requests are detached nevertheless.
  public func detachAll() throws(SystemError) {
    var problem: SystemError?
    for pasid in attachments.withLock({ $0.keys.sorted { ($0 ?? .max) < ($1 ?? .max) } }) {
      do throws(SystemError) {
        try detach(pasid: pasid)
      } catch {
        problem = problem ?? error
      }
    }
    if let problem { throw problem }
  }

  // MARK: Reset

  /// Resets the device by FLR if the function has it, else by another method that the kernel finds (VFIO_DEVICE_RESET).
  public func reset() throws(SystemError) {
    try file.request("VFIO_DEVICE_RESET", VFIO_DEVICE_RESET)
  }

  /// The functions that a reset of the device's bus would reset.
  public struct BusReset: Hashable, Sendable {
    /// The owner of a function, as the kernel's check before the reset determines it.
    public enum Owner: Hashable, Sendable {
      /// A device that is bound to the same iommufd, by its id there.
      case device(UInt32)
      /// Unused: no process has the function open, and only this process could open it.
      case unused
      /// The host or another process uses the function.
      case other

      init(_ id: UInt32) {
        switch id {
        case UInt32(VFIO_PCI_DEVID_OWNED): self = .unused
        case UInt32(bitPattern: Int32(VFIO_PCI_DEVID_NOT_OWNED)): self = .other
        default: self = .device(id)
        }
      }
    }

    public struct Function: Hashable, Sendable {
      public var owner: Owner
      public var segment: UInt16
      public var bus: UInt8
      public var deviceFunction: UInt8
    }
    /// Whether this process owns all of the functions, so that the kernel allows the reset.
    public var isAllowed: Bool
    public var functions: [Function]
  }

  /// Returns the functions that a bus reset would reset (VFIO_DEVICE_GET_PCI_HOT_RESET_INFO).
  public func busReset() throws(SystemError) -> BusReset {
    let entrySize = MemoryLayout<vfio_pci_dependent_device>.size
    var room = 32
    while true {
      var request = VariableRequest(vfio_pci_hot_reset_info(), room: room * entrySize)
      request.header.argsz = UInt32(clamping: request.count)
      do {
        try file.request("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &request)
      } catch {
        // The kernel has set `count` to the number of functions.
        let count = Int(request.header.count)
        guard error.code == ENOSPC, count > room, count <= 4096 else { throw error }
        room = count
        continue
      }
      let functions = (0..<min(Int(request.header.count), room)).compactMap { index in
        request.load(vfio_pci_dependent_device.self, at: type(of: request).headerSize + entrySize * index)
      }
      return BusReset(
        // Without this flag, the ids are those of groups and do not help here.
        isAllowed: request.header.flags & UInt32(VFIO_PCI_HOT_RESET_FLAG_DEV_ID) != 0
          && request.header.flags & UInt32(VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED) != 0,
        functions: functions.map {
          .init(owner: .init($0.devid), segment: $0.segment, bus: $0.bus, deviceFunction: $0.devfn)
        })
    }
  }

  /// Resets the bus (VFIO_DEVICE_PCI_HOT_RESET). The kernel allows it if this process owns every function of the bus.
  public func resetBus() throws(SystemError) {
    var request = vfio_pci_hot_reset()
    request.argsz = byteCount(of: vfio_pci_hot_reset.self)
    try file.request("VFIO_DEVICE_PCI_HOT_RESET", VFIO_DEVICE_PCI_HOT_RESET, &request)
  }
}
