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
  public init(
    of file: borrowing FileDescriptor, size: Int, offset: Int = 0, reserving: Bool = false
  ) throws(SystemError) {
    let flags = reserving ? MAP_SHARED : MAP_SHARED | MAP_NORESERVE
    // SAFETY: the kernel chooses the place; nothing is there yet.
    let answer = unsafe mmap(nil, size, PROT_READ | PROT_WRITE, flags, file.rawValue, offset)
    guard let answer = unsafe answer, unsafe answer != MAP_FAILED else { throw SystemError("mmap", code: errno) }
    unsafe base = answer
    self.size = size
  }

  deinit {
    // SAFETY: the range is this mapping's own and nobody is left who knows it.
    unsafe munmap(base, size)
  }
}
