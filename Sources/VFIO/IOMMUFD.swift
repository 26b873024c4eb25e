import CLinux
import Glibc
import Linux

/// iommufd (`/dev/iommu`, <linux/iommufd.h>): the kernel object that owns I/O address spaces and page tables, and to
/// which devices are bound.
///
/// Each object allocated from it is destroyed with its last reference. A page table keeps a reference to its parent, so
/// that children are destroyed first, as the kernel requires.
public final class IOMMUFD: Sendable {
  public static let path = "/dev/iommu"

  public let file: KernelFile

  public init(file: KernelFile) { self.file = file }

  public convenience init(calls: any SystemCalls = HostSystemCalls()) throws(SystemError) {
    self.init(file: try KernelFile(opening: Self.path, calls: calls))
  }

  /// Destroys an object (IOMMU_DESTROY). The kernel refuses (EBUSY) while the object is in use; the references
  /// described above prevent that.
  func destroy(_ id: UInt32) {
    var request = iommu_destroy()
    request.size = byteCount(of: iommu_destroy.self)
    request.id = id
    _ = try? file.request("IOMMU_DESTROY", IOMMU_DESTROY, &request)
  }
}

/// An I/O address space (IOAS): the memory of this process that a device can access, and its addresses for the device.
public final class IOAddressSpace: AttachmentTarget {
  public let owner: IOMMUFD
  public let id: UInt32
  private let backing: (any AnyObject & Sendable)?

  /// The accesses that a device may make to a mapping.
  public struct Access: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let read = Access(rawValue: UInt32(IOMMU_IOAS_MAP_READABLE))
    public static let write = Access(rawValue: UInt32(IOMMU_IOAS_MAP_WRITEABLE))
  }

  /// - Parameter backing: keeps the mapped memory in place. It is released after the kernel has unmapped the memory.
  public init(of owner: IOMMUFD, backing: (any AnyObject & Sendable)? = nil) throws(SystemError) {
    self.backing = backing
    var request = iommu_ioas_alloc()
    request.size = byteCount(of: iommu_ioas_alloc.self)
    try owner.file.request("IOMMU_IOAS_ALLOC", IOMMU_IOAS_ALLOC, &request)
    self.owner = owner
    id = request.out_ioas_id
  }

  deinit { owner.destroy(id) }

  /// Maps memory of this process at a fixed address and pins its pages (IOMMU_IOAS_MAP).
  /// - Parameters:
  ///   - hostAddress: the memory's address in this process. This, `address` and `size` are page-aligned.
  ///   - size: in bytes.
  public func map(_ address: UInt64, size: UInt64, to hostAddress: UInt64, _ access: Access) throws(SystemError) {
    var request = iommu_ioas_map()
    request.size = byteCount(of: iommu_ioas_map.self)
    request.flags = UInt32(IOMMU_IOAS_MAP_FIXED_IOVA) | access.rawValue
    request.ioas_id = id
    request.user_va = hostAddress
    request.length = size
    request.iova = address
    try owner.file.request("IOMMU_IOAS_MAP", IOMMU_IOAS_MAP, &request)
  }

  /// Maps a dma-buf, from its start, at a fixed address (IOMMU_IOAS_MAP_FILE).
  /// - Parameter size: in bytes; page-aligned, as is the address.
  public func map(_ address: UInt64, size: UInt64, to buffer: KernelFile, _ access: Access) throws(SystemError) {
    var request = iommu_ioas_map_file()
    request.size = byteCount(of: iommu_ioas_map_file.self)
    request.flags = UInt32(IOMMU_IOAS_MAP_FIXED_IOVA) | access.rawValue
    request.ioas_id = id
    request.fd = buffer.descriptor
    request.length = size
    request.iova = address
    try owner.file.request("IOMMU_IOAS_MAP_FILE", IOMMU_IOAS_MAP_FILE, &request)
  }

  /// Unmaps whole mappings (IOMMU_IOAS_UNMAP).
  public func unmap(_ address: UInt64, size: UInt64) throws(SystemError) {
    var request = iommu_ioas_unmap()
    request.size = byteCount(of: iommu_ioas_unmap.self)
    request.ioas_id = id
    request.iova = address
    request.length = size
    try owner.file.request("IOMMU_IOAS_UNMAP", IOMMU_IOAS_UNMAP, &request)
  }

  /// Returns the addresses that all attached devices can use (IOMMU_IOAS_IOVA_RANGES). They leave out the interrupt
  /// addresses at 0xFEE0_0000.
  public func allowedRanges() throws(SystemError) -> [ClosedRange<UInt64>] {
    var ranges = [iommu_iova_range](repeating: iommu_iova_range(), count: 64)
    while true {
      var request = iommu_ioas_iova_ranges()
      request.size = byteCount(of: iommu_ioas_iova_ranges.self)
      request.ioas_id = id
      request.num_iovas = UInt32(ranges.count)
      do {
        // SAFETY: the kernel fills at most the stated number of elements; the array lives until the call returns.
        let file = owner.file
        try unsafe ranges.withUnsafeMutableBufferPointer { (buffer) throws(SystemError) in
          request.allowed_iovas = UInt64(UInt(bitPattern: buffer.baseAddress))
          try file.request("IOMMU_IOAS_IOVA_RANGES", IOMMU_IOAS_IOVA_RANGES, &request)
        }
      } catch {
        // The kernel has set `num_iovas` to the number of ranges.
        guard error.code == EMSGSIZE, Int(request.num_iovas) > ranges.count, request.num_iovas <= 4096 else {
          throw error
        }
        ranges = [iommu_iova_range](repeating: iommu_iova_range(), count: Int(request.num_iovas))
        continue
      }
      return ranges.prefix(Int(request.num_iovas)).filter { $0.start <= $0.last }.map { $0.start...$0.last }
    }
  }
}
