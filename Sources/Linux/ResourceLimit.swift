import Glibc

/// Resource limits of this process (getrlimit(2)).
public enum ResourceLimit {
  /// The number of bytes of memory that may be locked (RLIMIT_MEMLOCK); nil for no limit. For a privileged process it
  /// is always nil.
  public static var lockedMemory: UInt64? {
    if geteuid() == 0 { return nil }
    var limit = rlimit()
    // SAFETY: the kernel fills the structure.
    guard unsafe getrlimit(__rlimit_resource_t(__RLIMIT_MEMLOCK.rawValue), &limit) == 0 else { return 0 }
    return limit.rlim_cur == rlim_t.max ? nil : UInt64(limit.rlim_cur)
  }

  /// The largest file that this process may write, in bytes (RLIMIT_FSIZE); nil for no limit. A memfd counts as a file.
  public static var fileSize: UInt64? {
    var limit = rlimit()
    // SAFETY: the kernel fills the structure.
    guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0 else { return nil }
    return limit.rlim_cur == rlim_t.max ? nil : UInt64(limit.rlim_cur)
  }
}
