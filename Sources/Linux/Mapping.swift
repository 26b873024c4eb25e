import CLinux
import Glibc

/// Memory from mmap(2), given back when its owner goes.
@safe
public struct Mapping: ~Copyable, @unchecked Sendable {
  public let base: UnsafeMutableRawPointer
  /// In bytes.
  public let size: Int

  /// A shared mapping of a file.
  /// - Parameters:
  ///   - size: in bytes, not zero.
  ///   - reserving: whether the host must have room for all of it now: huge pages that are missing later are a SIGBUS.
  ///   - alignment: of the base, a power of two; the host's pages are aligned anyway.
  public init(
    of file: borrowing FileDescriptor, size: Int, offset: Int = 0, reserving: Bool = false, alignment: Int = 1
  ) throws(SystemError) {
    let flags = reserving ? MAP_SHARED : MAP_SHARED | MAP_NORESERVE
    try self.init(size: size, alignment: alignment, flags: flags, file: file.rawValue, offset: offset)
  }

  /// Memory of this process alone, zeroed, that takes room when it is used first.
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
      // SAFETY: the kernel chooses the place; nothing is there yet.
      unsafe base = try Self.check(unsafe mmap(nil, size, PROT_READ | PROT_WRITE, flags, file, offset))
      return
    }
    // Room with a place of that alignment in it; the mapping goes there, and what is left around it goes back.
    let (room, overflow) = size.addingReportingOverflow(alignment + Self.pageSize)
    if overflow { throw SystemError("mmap", "\(size) bytes", code: ENOMEM) }
    // SAFETY: the kernel chooses the place; nothing is there yet.
    let start = unsafe try Self.check(
      unsafe mmap(nil, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))
    let before = -Int(bitPattern: start) & (alignment - 1)
    let after = before + (size + Self.pageSize - 1) & ~(Self.pageSize - 1)
    do throws(SystemError) {
      // SAFETY: the range lies within the room, which is not in use.
      unsafe base = try Self.check(
        unsafe mmap(start + before, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file, offset))
    } catch {
      // SAFETY: the room is this call's own.
      unsafe munmap(start, room)
      throw error
    }
    // SAFETY: the parts of the room before and after the mapping.
    if before > 0 { unsafe munmap(start, before) }
    unsafe munmap(start + after, room - after)
  }

  private static let pageSize = 4096

  private static func check(_ answer: UnsafeMutableRawPointer?) throws(SystemError) -> UnsafeMutableRawPointer {
    guard let answer = unsafe answer, unsafe answer != MAP_FAILED else { throw SystemError("mmap", code: errno) }
    return unsafe answer
  }

  /// madvise(2) for all of it.
  /// - Returns: whether the host took the advice.
  @discardableResult
  public func advise(_ advice: Int32) -> Bool {
    // SAFETY: the mapping's own range; the advice is one that its owner can do with.
    unsafe madvise(base, size, advice) == 0
  }

  /// Makes anonymous memory what it was at first: zeroed, without room of its own. The address stays.
  public func renew() throws(SystemError) {
    if !advise(MADV_DONTNEED) { try replacePages() }
  }

  /// The same on a kernel without madvise(2) (CONFIG_ADVISE_SYSCALLS): a new mapping takes the place of this one.
  func replacePages() throws(SystemError) {
    // SAFETY: the mapping's own range, which MAP_FIXED replaces in one step.
    _ = unsafe try Self.check(
      unsafe mmap(base, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0))
  }

  deinit {
    // SAFETY: the range is this mapping's own and nobody is left who knows it.
    unsafe munmap(base, size)
  }
}
