import CLinux
import Glibc
import Linux

/// iommufd (`/dev/iommu`, <linux/iommufd.h>): the kernel object that owns I/O address spaces and page tables, and that
/// devices are bound to.
///
/// What is made of it destroys itself when its last owner goes; a page table holds on to its parent, so that the
/// order is always the kernel's: children first.
public final class IOMMUFD: Sendable {
  public static let path = "/dev/iommu"

  public let file: KernelFile

  public init(file: KernelFile) { self.file = file }

  public convenience init(calls: any SystemCalls = HostSystemCalls()) throws(SystemError) {
    self.init(file: try KernelFile(opening: Self.path, calls: calls))
  }

  /// IOMMU_DESTROY. The kernel refuses (EBUSY) what is still in use, which the owners' order rules out.
  func destroy(_ id: UInt32) {
    var request = iommu_destroy()
    request.size = byteCount(of: iommu_destroy.self)
    request.id = id
    _ = try? file.request("IOMMU_DESTROY", IOMMU_DESTROY, &request)
  }
}

/// An I/O address space (IOAS): which of our memory a device reaches, at which addresses.
public final class IOAddressSpace: AttachmentTarget {
  public let owner: IOMMUFD
  public let id: UInt32
  private let backing: (any AnyObject & Sendable)?

  /// What a device may do to a mapping.
  public struct Access: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let read = Access(rawValue: UInt32(IOMMU_IOAS_MAP_READABLE))
    public static let write = Access(rawValue: UInt32(IOMMU_IOAS_MAP_WRITEABLE))
  }

  /// - Parameter backing: what keeps the memory that is going to be mapped where it is; let go when the kernel has let
  ///   go of the memory.
  public init(of owner: IOMMUFD, backing: (any AnyObject & Sendable)? = nil) throws(SystemError) {
    self.backing = backing
    var request = iommu_ioas_alloc()
    request.size = byteCount(of: iommu_ioas_alloc.self)
    try owner.file.request("IOMMU_IOAS_ALLOC", IOMMU_IOAS_ALLOC, &request)
    self.owner = owner
    id = request.out_ioas_id
  }

  deinit { owner.destroy(id) }

  /// IOMMU_IOAS_MAP at a fixed address: pins the pages.
  /// - Parameters:
  ///   - hostAddress: of our own memory; aligned to pages, as the others are.
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

  /// IOMMU_IOAS_MAP_FILE at a fixed address: what a dma-buf stands for, from its start.
  /// - Parameter size: in bytes; aligned to pages, as the address is.
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

  /// IOMMU_IOAS_UNMAP of whole mappings.
  public func unmap(_ address: UInt64, size: UInt64) throws(SystemError) {
    var request = iommu_ioas_unmap()
    request.size = byteCount(of: iommu_ioas_unmap.self)
    request.ioas_id = id
    request.iova = address
    request.length = size
    try owner.file.request("IOMMU_IOAS_UNMAP", IOMMU_IOAS_UNMAP, &request)
  }

  /// IOMMU_IOAS_IOVA_RANGES: the addresses that every device attached now can drive. The hole of the interrupt
  /// addresses (0xFEE0_0000) is not among them.
  public func allowedRanges() throws(SystemError) -> [ClosedRange<UInt64>] {
    var ranges = [iommu_iova_range](repeating: iommu_iova_range(), count: 64)
    while true {
      var request = iommu_ioas_iova_ranges()
      request.size = byteCount(of: iommu_ioas_iova_ranges.self)
      request.ioas_id = id
      request.num_iovas = UInt32(ranges.count)
      do {
        // SAFETY: the kernel fills the array, as many as were said to fit; it stays for the call.
        let file = owner.file
        try unsafe ranges.withUnsafeMutableBufferPointer { (buffer) throws(SystemError) in
          request.allowed_iovas = UInt64(UInt(bitPattern: buffer.baseAddress))
          try file.request("IOMMU_IOAS_IOVA_RANGES", IOMMU_IOAS_IOVA_RANGES, &request)
        }
      } catch {
        // It tells how many there are.
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
