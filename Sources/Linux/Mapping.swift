import CLinux
import Glibc

/// Memory from mmap(2), unmapped when this value is destroyed.
@safe
public struct Mapping: ~Copyable, @unchecked Sendable {
  public let base: UnsafeMutableRawPointer
  /// In bytes.
  public let size: Int

  /// Maps a file, shared with other processes.
  /// - Parameters:
  ///   - size: in bytes, not zero.
  ///   - reserving: whether the host must reserve all memory now. A huge page that is missing later is a SIGBUS.
  ///   - alignment: of the base, a power of two; page alignment is the minimum.
  public init(
    of file: borrowing FileDescriptor, size: Int, offset: Int = 0, reserving: Bool = false, alignment: Int = 1
  ) throws(SystemError) {
    let flags = reserving ? MAP_SHARED : MAP_SHARED | MAP_NORESERVE
    try self.init(size: size, alignment: alignment, flags: flags, file: file.rawValue, offset: offset)
  }

  /// Maps zeroed memory that only this process sees. It uses no host memory until it is touched.
  /// - Parameters:
  ///   - size: in bytes, not zero.
  ///   - alignment: of the base, a power of two.
  public init(anonymous size: Int, alignment: Int) throws(SystemError) {
    try self.init(
      size: size, alignment: alignment, flags: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, file: -1, offset: 0)
  }

  private init(size: Int, alignment: Int, flags: Int32, file: Int32, offset: Int) throws(SystemError) {
    self.size = size
    guard alignment > Self.pageSize else {
      // SAFETY: the kernel chooses an unused range.
      unsafe base = try Self.check(unsafe mmap(nil, size, PROT_READ | PROT_WRITE, flags, file, offset))
      return
    }
    // Reserve a range that contains an aligned one, map there, and unmap the rest on both sides.
    let (room, overflow) = size.addingReportingOverflow(alignment + Self.pageSize)
    if overflow { throw SystemError("mmap", "\(size) bytes", code: ENOMEM) }
    // SAFETY: the kernel chooses an unused range.
    let start = unsafe try Self.check(
      unsafe mmap(nil, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))
    let before = -Int(bitPattern: start) & (alignment - 1)
    let after = before + (size + Self.pageSize - 1) & ~(Self.pageSize - 1)
    do throws(SystemError) {
      // SAFETY: the range lies within the reservation, which is not in use.
      unsafe base = try Self.check(
        unsafe mmap(start + before, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file, offset))
    } catch {
      // SAFETY: this call made the reservation.
      unsafe munmap(start, room)
      throw error
    }
    // SAFETY: the parts of the reservation before and after the mapping.
    if before > 0 { unsafe munmap(start, before) }
    unsafe munmap(start + after, room - after)
  }

  private static let pageSize = 4096

  private static func check(_ answer: UnsafeMutableRawPointer?) throws(SystemError) -> UnsafeMutableRawPointer {
    guard let answer = unsafe answer, unsafe answer != MAP_FAILED else { throw SystemError("mmap", code: errno) }
    return unsafe answer
  }

  /// Calls madvise(2) for the whole mapping.
  /// - Returns: whether the host accepted the advice.
  @discardableResult
  public func advise(_ advice: Int32) -> Bool {
    // SAFETY: the range is the whole mapping; callers give advice that its users can handle.
    unsafe madvise(base, size, advice) == 0
  }

  /// Returns anonymous memory to its first state: zeroed and without host memory. The address stays.
  public func renew() throws(SystemError) {
    if !advise(MADV_DONTNEED) { try replacePages() }
  }

  /// Replaces the mapping by a new one, with the effect of `renew` on a kernel without madvise(2)
  /// (CONFIG_ADVISE_SYSCALLS).
  func replacePages() throws(SystemError) {
    // SAFETY: the range is the whole mapping, which MAP_FIXED replaces atomically.
    _ = unsafe try Self.check(
      unsafe mmap(base, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0))
  }

  deinit {
    // SAFETY: the range is this mapping's, and no references to it are left.
    unsafe munmap(base, size)
  }
}
