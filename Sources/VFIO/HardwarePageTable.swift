import CLinux
import Linux

/// A hardware page table (HWPT), to which devices are attached. A parent is the kernel's own second stage over an
/// address space; a nested one is the guest's first stage, in guest memory, on top of a parent.
public final class HardwarePageTable: AttachmentTarget {
  /// A first-stage table as the guest's PASID-table entry describes it: struct iommu_hwpt_vtd_s1.
  public struct FirstStage: Hashable, Sendable {
    /// FSPTPTR: a guest physical address, which the second stage translates.
    public var root: UInt64
    /// The width of input addresses: 48, or 57 for five levels.
    public var addressWidth: UInt32
    public var supervisorRequestEnable: Bool
    public var extendedAccessedFlagEnable: Bool
    public var writeProtectEnable: Bool

    public init(
      root: UInt64, addressWidth: UInt32, supervisorRequestEnable: Bool = false,
      extendedAccessedFlagEnable: Bool = false, writeProtectEnable: Bool = false
    ) {
      self.root = root
      self.addressWidth = addressWidth
      self.supervisorRequestEnable = supervisorRequestEnable
      self.extendedAccessedFlagEnable = extendedAccessedFlagEnable
      self.writeProtectEnable = writeProtectEnable
    }

    var flags: UInt64 {
      var flags: UInt64 = 0
      if supervisorRequestEnable { flags |= UInt64(IOMMU_VTD_S1_SRE) }
      if extendedAccessedFlagEnable { flags |= UInt64(IOMMU_VTD_S1_EAFE) }
      if writeProtectEnable { flags |= UInt64(IOMMU_VTD_S1_WPE) }
      return flags
    }
  }

  /// The object below this table: the address space of a parent, or the parent of a nested table.
  private enum Base: Sendable {
    case addressSpace(IOAddressSpace)
    case parent(HardwarePageTable)
  }

  private let owner: IOMMUFD
  public let id: UInt32
  private let base: Base
  private let faults: FaultQueue?
  /// Whether the table was allocated for use with PASIDs (IOMMU_HWPT_ALLOC_PASID). While a PASID of a device is attached,
  /// the kernel requires this of each table of the device, also of that for requests without PASID.
  public let allowsPASIDs: Bool

  /// Allocates a second stage over an address space, as a parent of nested tables.
  /// - Parameters:
  ///   - device: the table is made for this device's IOMMU. A device behind a compatible IOMMU may share the table.
  ///   - allowsPASIDs: whether PASIDs of devices can use the table and the tables nested on it.
  /// - Throws: EOPNOTSUPP if the table should allow PASIDs, and the kernel or the IOMMU has none.
  public init(
    parentOver space: IOAddressSpace, for device: UInt32, allowsPASIDs: Bool = false
  ) throws(SystemError) {
    var request = iommu_hwpt_alloc()
    request.size = byteCount(of: iommu_hwpt_alloc.self)
    request.flags = UInt32(IOMMU_HWPT_ALLOC_NEST_PARENT)
    if allowsPASIDs { request.flags |= UInt32(IOMMU_HWPT_ALLOC_PASID) }
    request.dev_id = device
    request.pt_id = space.id
    try space.owner.file.request("IOMMU_HWPT_ALLOC", IOMMU_HWPT_ALLOC, &request)
    owner = space.owner
    id = request.out_hwpt_id
    base = .addressSpace(space)
    faults = nil
    self.allowsPASIDs = allowsPASIDs
  }

  /// Allocates a nested table: the guest's first stage on a parent. It allows PASIDs if its parent does.
  /// - Parameter faults: the queue of page requests that the table does not answer; nil to refuse them.
  public init(
    nesting table: FirstStage, on parent: HardwarePageTable, for device: UInt32, faults: FaultQueue? = nil
  ) throws(SystemError) {
    var data = iommu_hwpt_vtd_s1()
    data.flags = table.flags
    data.pgtbl_addr = table.root
    data.addr_width = table.addressWidth
    var request = iommu_hwpt_alloc()
    request.size = byteCount(of: iommu_hwpt_alloc.self)
    request.dev_id = device
    request.pt_id = parent.id
    if parent.allowsPASIDs { request.flags |= UInt32(IOMMU_HWPT_ALLOC_PASID) }
    request.data_type = UInt32(IOMMU_HWPT_DATA_VTD_S1)
    request.data_len = byteCount(of: iommu_hwpt_vtd_s1.self)
    if let faults {
      request.flags |= UInt32(IOMMU_HWPT_FAULT_ID_VALID)
      request.fault_id = faults.id
    }
    // SAFETY: the kernel reads the structure, which stays for the call.
    try unsafe withUnsafeMutablePointer(to: &data) { (pointer) throws(SystemError) in
      request.data_uptr = UInt64(UInt(bitPattern: pointer))
      try parent.owner.file.request("IOMMU_HWPT_ALLOC", IOMMU_HWPT_ALLOC, &request)
    }
    owner = parent.owner
    id = request.out_hwpt_id
    base = .parent(parent)
    self.faults = faults
    allowsPASIDs = parent.allowsPASIDs
  }

  deinit { owner.destroy(id) }

  /// The parent of a nested table; nil for a parent.
  public var parent: HardwarePageTable? { if case .parent(let parent) = base { parent } else { nil } }

  /// The address space below the second stage, which is the parent's for a nested table.
  public var addressSpace: IOAddressSpace? {
    switch base {
    case .addressSpace(let space): space
    case .parent(let parent): parent.addressSpace
    }
  }

  /// First-stage mappings that the guest has invalidated: struct iommu_hwpt_vtd_s1_invalidate.
  public struct Invalidation: Hashable, Sendable {
    /// Aligned to 4 KiB.
    public var address: UInt64
    /// In 4 KiB pages; `.max`, with address 0, for all pages.
    public var pages: UInt64
    public var leafOnly: Bool

    public init(address: UInt64, pages: UInt64, leafOnly: Bool) {
      self.address = address
      self.pages = pages
      self.leafOnly = leafOnly
    }

    public static let all = Invalidation(address: 0, pages: .max, leafOnly: false)
  }

  /// Invalidates in one call (IOMMU_HWPT_INVALIDATE).
  public func invalidate(_ invalidations: [Invalidation]) throws(SystemError) {
    guard !invalidations.isEmpty else { return }
    var entries = invalidations.map { invalidation in
      iommu_hwpt_vtd_s1_invalidate(
        addr: invalidation.address, npages: invalidation.pages,
        flags: invalidation.leafOnly ? UInt32(IOMMU_VTD_INV_FLAGS_LEAF) : 0, __reserved: 0)
    }
    var request = iommu_hwpt_invalidate()
    request.size = byteCount(of: iommu_hwpt_invalidate.self)
    request.hwpt_id = id
    request.data_type = UInt32(IOMMU_HWPT_INVALIDATE_DATA_VTD_S1)
    request.entry_len = byteCount(of: iommu_hwpt_vtd_s1_invalidate.self)
    request.entry_num = UInt32(entries.count)
    let file = owner.file
    // SAFETY: the kernel reads the entries, which stay for the call.
    try unsafe entries.withUnsafeMutableBufferPointer { (buffer) throws(SystemError) in
      request.data_uptr = UInt64(UInt(bitPattern: buffer.baseAddress))
      try file.request("IOMMU_HWPT_INVALIDATE", IOMMU_HWPT_INVALIDATE, &request)
    }
  }
}
