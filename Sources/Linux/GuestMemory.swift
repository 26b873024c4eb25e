import CLinux
import Glibc
import Synchronization

/// The RAM of a guest: memory mapped once, of which one part lies below 4 GiB and the rest above.
///
/// Each page that a CPU touches first costs an exit, so the host should use large pages. Nearly every host gives them for
/// anonymous memory, few for shared memory (`shmem_enabled`): RAM is anonymous unless other processes must map it.
/// Both parts begin at a large page, in the guest and here, or KVM could not use it. Core dumps leave RAM out: it is the
/// guest's, and large.
///
/// Every access is checked against the two parts. The guest's CPUs and DMA go on at the same time, so what is
/// read once may be different when read again; each caller reads a location that matters once.
@safe
public final class GuestMemory: @unchecked Sendable {
  /// A run of guest physical addresses that is RAM.
  public struct Region: Sendable {
    public let address: UInt64
    /// In bytes.
    public let size: UInt64
    /// Where it begins in the mapping, and in the memfd if there is one.
    public let fileOffset: UInt64
  }

  public enum Backing: Hashable, Sendable {
    /// Memory of this process alone.
    case anonymous
    /// A memfd, which other processes can map.
    case shared
    /// A memfd with pages from hugetlbfs's pool; nil for the default size.
    case hugePages(UInt64?)
  }

  public static let highBase: UInt64 = 1 << 32
  /// What x86 maps by one entry of a page directory, in bytes.
  public static let largePageSize: UInt64 = 2 << 20

  /// One or two, in order of address.
  public let regions: [Region]
  /// The memfd and its number; nil for anonymous memory.
  private let file: FileDescriptor?
  private let fileDescriptor: Int32?
  private let mapping: Mapping
  /// How many pins there are. Held while pages are given back, so that nothing is pinned meanwhile.
  private let pins = Mutex(0)
  // Reached from other modules in line: each level of each walk of a page table is a load.
  @usableFromInline let lowSize: UInt64
  @usableFromInline let highSize: UInt64
  @usableFromInline let low: UnsafeMutableRawPointer
  @usableFromInline let high: UnsafeMutableRawPointer

  /// - Parameters:
  ///   - size: of all RAM, in bytes, not zero.
  ///   - lowLimit: how much of it at most lies below 4 GiB; a multiple of `largePageSize`, or the upper part has none.
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
      // The kernel aligns it to its pages by itself.
      mapping = try Mapping(of: file, size: total, reserving: true)
      fileDescriptor = file.rawValue
      self.file = consume file
    }
    // A host without large pages refuses the advice, and has small ones.
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

  /// - Parameter pageShift: 0 for ordinary pages, 1 for huge ones of the default size, else their size's exponent.
  private static func makeFile(size: Int, pageShift: UInt32) throws(SystemError) -> FileDescriptor {
    // SAFETY: a literal lives long enough.
    let descriptor = try checked(unsafe nestling_memfd_create("nestling-ram", pageShift), "memfd_create")
    let file = FileDescriptor(owning: descriptor)
    if ftruncate(descriptor, size) < 0 {
      let code = errno
      let limit = code == EFBIG ? ResourceLimit.fileSize : nil
      throw SystemError(
        "ftruncate", "\(size) bytes of RAM", code: code,
        because: limit.map { "it is a file, and files may have \($0) bytes here (RLIMIT_FSIZE, ulimit -f)" })
    }
    return file
  }

  /// The host's address of a region, as a number: KVM wants it so.
  public func hostAddress(of region: Region) -> UInt64 {
    unsafe UInt64(UInt(bitPattern: mapping.base)) + region.fileOffset
  }

  /// Where the range is mapped, or nil if any of it is not RAM.
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

  /// Keeps the pages of RAM where they are for as long as it is held: an IOMMU knows them, say.
  public final class Pin: Sendable {
    private let memory: GuestMemory

    fileprivate init(_ memory: GuestMemory) {
      self.memory = memory
      memory.pins.withLock { $0 += 1 }
    }

    deinit { memory.pins.withLock { $0 -= 1 } }
  }

  /// From its return on no page goes. It waits for no more than a `clear` that is under way.
  public func pin() -> Pin { Pin(self) }

  public var isPinned: Bool { pins.withLock { $0 > 0 } }

  /// Zeroes all of it, giving the pages back to the host unless they are pinned.
  public func clear() throws(SystemError) {
    let isPinned = try pins.withLock { (pins) throws(SystemError) in
      if pins == 0 { try giveBack() }
      return pins > 0
    }
    // SAFETY: the mapping's own range.
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
