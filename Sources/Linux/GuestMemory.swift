import CLinux
import Glibc
import Synchronization

/// The RAM of a guest: one mapping, whose first part lies below 4 GiB in the guest and whose rest lies above.
///
/// The first touch of each page by a CPU costs an exit, so the host should use large pages. Nearly every host has large
/// pages for anonymous memory, but few hosts have them for shared memory (`shmem_enabled`). So RAM is anonymous unless
/// other processes must map it. Both parts begin at a large page, in the guest and in the host; otherwise KVM could not
/// map them with large pages. Core dumps do not include RAM: it is large and belongs to the guest.
///
/// Every access is checked against the two parts. The guest's CPUs and DMA run at the same time, so a second read may
/// return another value. Each caller therefore reads each location that matters only once.
@safe
public final class GuestMemory: @unchecked Sendable {
  /// A range of guest physical addresses that is RAM.
  public struct Region: Sendable {
    public let address: UInt64
    /// In bytes.
    public let size: UInt64
    /// The region's offset in the mapping, and in the memfd if there is one.
    public let fileOffset: UInt64
  }

  public enum Backing: Hashable, Sendable {
    /// Memory that only this process maps.
    case anonymous
    /// A memfd, which other processes can map.
    case shared
    /// A memfd whose pages come from hugetlbfs's pool; nil for the default page size.
    case hugePages(UInt64?)
  }

  public static let highBase: UInt64 = 1 << 32
  /// The number of bytes that one entry of an x86 page directory maps.
  public static let largePageSize: UInt64 = 2 << 20

  /// One or two regions, in order of address.
  public let regions: [Region]
  /// The memfd and its number; nil for anonymous memory.
  private let file: FileDescriptor?
  private let fileDescriptor: Int32?
  private let mapping: Mapping
  /// The number of pins. `clear` holds the lock while it returns pages to the host, so that no pin is taken meanwhile.
  private let pins = Mutex(0)
  // Other modules inline the accesses: each level of each page-table walk is a load.
  @usableFromInline let lowSize: UInt64
  @usableFromInline let highSize: UInt64
  @usableFromInline let low: UnsafeMutableRawPointer
  @usableFromInline let high: UnsafeMutableRawPointer

  /// - Parameters:
  ///   - size: of all RAM, in bytes, not zero.
  ///   - lowLimit: the most bytes of RAM below 4 GiB. If this is not a multiple of `largePageSize`, the upper part has
  ///     no large pages.
  public init(size: UInt64, lowLimit: UInt64, backing: Backing = .anonymous) throws(SystemError) {
    guard let total = Int(exactly: size) else { throw SystemError("mmap", "\(size) bytes", code: ENOMEM) }
    switch backing {
    case .anonymous:
      file = nil
      fileDescriptor = nil
      mapping = try Mapping(anonymous: total, alignment: Int(Self.largePageSize))
    case .shared:
      let file = try Self.makeFile(size: total, pageShift: 0)
      mapping = try Mapping(of: file, size: total, alignment: Int(Self.largePageSize))
      fileDescriptor = file.rawValue
      self.file = consume file
    case .hugePages(let pageSize):
      let file = try Self.makeFile(size: total, pageShift: pageSize.map { UInt32($0.trailingZeroBitCount) } ?? 1)
      // The kernel aligns this mapping to its huge pages.
      mapping = try Mapping(of: file, size: total, reserving: true)
      fileDescriptor = file.rawValue
      self.file = consume file
    }
    // A host without large pages refuses the advice and uses small ones.
    mapping.advise(MADV_HUGEPAGE)
    mapping.advise(MADV_DONTDUMP)
    lowSize = min(size, lowLimit)
    highSize = size - lowSize
    unsafe low = mapping.base
    unsafe high = mapping.base + Int(lowSize)
    var regions = [Region(address: 0, size: lowSize, fileOffset: 0)]
    if highSize > 0 { regions.append(Region(address: Self.highBase, size: highSize, fileOffset: lowSize)) }
    self.regions = regions
  }

  /// - Parameter pageShift: 0 for ordinary pages, 1 for huge pages of the default size, else the logarithm of their
  ///   size.
  private static func makeFile(size: Int, pageShift: UInt32) throws(SystemError) -> FileDescriptor {
    // SAFETY: a literal is never freed.
    let descriptor = try checked(unsafe nestling_memfd_create("nestling-ram", pageShift), "memfd_create")
    let file = FileDescriptor(owning: descriptor)
    if ftruncate(descriptor, size) < 0 {
      let code = errno
      let limit = code == EFBIG ? ResourceLimit.fileSize : nil
      throw SystemError("ftruncate", "\(size) bytes of RAM", code: code, cause: limit.map { .fileSizeLimit($0) })
    }
    return file
  }

  /// The memfd of all regions, which another process can map; nil for anonymous memory. Stays open as long as this
  /// object.
  public var sharedDescriptor: Int32? { fileDescriptor }

  /// Returns the host's address of a region, as the number that KVM needs.
  public func hostAddress(of region: Region) -> UInt64 {
    unsafe UInt64(UInt(bitPattern: mapping.base)) + region.fileOffset
  }

  /// Returns the host's address of the range, or nil if any of it is not RAM.
  @inlinable @inline(__always)
  func pointer(_ address: UInt64, _ count: UInt64) -> UnsafeMutableRawPointer? {
    if address < lowSize {
      // SAFETY: checked to lie within the low part of the mapping.
      return count <= lowSize &- address ? unsafe low + Int(truncatingIfNeeded: address) : nil
    }
    let offset = address &- Self.highBase
    guard address >= Self.highBase, offset < highSize, count <= highSize &- offset else { return nil }
    // SAFETY: checked to lie within the high part of the mapping.
    return unsafe high + Int(truncatingIfNeeded: offset)
  }

  public func contains(_ address: UInt64, count: UInt64) -> Bool { unsafe pointer(address, count) != nil }

  // SAFETY, for all of the following: `pointer` has checked the range, and the alignment is checked here.

  public func loadUInt16(at address: UInt64) -> UInt16? {
    guard address & 1 == 0, let at = unsafe pointer(address, 2) else { return nil }
    return unsafe nestling_load16(at)
  }

  public func loadUInt32(at address: UInt64) -> UInt32? {
    guard address & 3 == 0, let at = unsafe pointer(address, 4) else { return nil }
    return unsafe nestling_load32(at)
  }

  @inlinable @inline(__always)
  public func loadUInt64(at address: UInt64) -> UInt64? {
    guard address & 7 == 0, let at = unsafe pointer(address, 8) else { return nil }
    return unsafe nestling_load64(at)
  }

  public func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool {
    guard address & 1 == 0, let at = unsafe pointer(address, 2) else { return false }
    unsafe nestling_store16(at, value)
    return true
  }

  public func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool {
    guard address & 3 == 0, let at = unsafe pointer(address, 4) else { return false }
    unsafe nestling_store32(at, value)
    return true
  }

  public func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool {
    guard address & 7 == 0, let at = unsafe pointer(address, 8) else { return false }
    unsafe nestling_store64(at, value)
    return true
  }

  public func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64? {
    guard address & 7 == 0, let at = unsafe pointer(address, 8) else { return nil }
    return unsafe nestling_compare_exchange64(at, expected, desired)
  }

  public func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool {
    guard let at = unsafe pointer(address, UInt64(bytes.byteCount)) else { return false }
    unsafe bytes.withUnsafeMutableBytes { target in
      if let base = target.baseAddress { unsafe memcpy(base, at, target.count) }
    }
    return true
  }

  public func write(_ bytes: RawSpan, to address: UInt64) -> Bool {
    guard let at = unsafe pointer(address, UInt64(bytes.byteCount)) else { return false }
    unsafe bytes.withUnsafeBytes { source in
      if let base = source.baseAddress { unsafe memcpy(at, base, source.count) }
    }
    return true
  }

  /// Keeps the pages of RAM in place as long as it exists: for example, because an IOMMU maps them.
  public final class Pin: Sendable {
    private let memory: GuestMemory

    fileprivate init(_ memory: GuestMemory) {
      self.memory = memory
      memory.pins.withLock { $0 += 1 }
    }

    deinit { memory.pins.withLock { $0 -= 1 } }
  }

  /// Pins RAM: from now on no page returns to the host. Waits for a `clear` in progress, and for nothing else.
  public func pin() -> Pin { Pin(self) }

  public var isPinned: Bool { pins.withLock { $0 > 0 } }

  /// Zeroes all RAM. Returns the pages to the host unless they are pinned.
  public func clear() throws(SystemError) {
    let isPinned = try pins.withLock { (pins) throws(SystemError) in
      if pins == 0 { try giveBack() }
      return pins > 0
    }
    // SAFETY: the range is the whole mapping.
    if isPinned { unsafe memset(mapping.base, 0, mapping.size) }
  }

  private func giveBack() throws(SystemError) {
    if let fileDescriptor {
      _ = try checked(nestling_punch_hole(fileDescriptor, 0, Int64(mapping.size)), "fallocate", "RAM")
    } else {
      try mapping.renew()
    }
  }
}
