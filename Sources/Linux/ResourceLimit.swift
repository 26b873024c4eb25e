import Glibc

/// Limits that the kernel sets a process (getrlimit(2)).
public enum ResourceLimit {
  /// Bytes of memory that may be locked (RLIMIT_MEMLOCK); nil for no limit, which a privileged process has whatever
  /// the number says.
  public static var lockedMemory: UInt64? {
    if geteuid() == 0 { return nil }
    var limit = rlimit()
    // SAFETY: the kernel fills the structure.
    guard unsafe getrlimit(__rlimit_resource_t(__RLIMIT_MEMLOCK.rawValue), &limit) == 0 else { return 0 }
    return limit.rlim_cur == rlim_t.max ? nil : UInt64(limit.rlim_cur)
  }

  /// The largest size of a file that this process writes, a memfd included, in bytes (RLIMIT_FSIZE); nil for no limit.
  public static var fileSize: UInt64? {
    var limit = rlimit()
    // SAFETY: the kernel fills the structure.
    guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_FSIZE.rawValue), &limit) == 0 else { return nil }
    return limit.rlim_cur == rlim_t.max ? nil : UInt64(limit.rlim_cur)
  }
}
