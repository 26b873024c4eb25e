import Glibc

/// The host's clocks.
public enum Clock {
  /// Returns nanoseconds of CLOCK_MONOTONIC.
  public static func monotonic() -> UInt64 { read(CLOCK_MONOTONIC) }

  /// Returns nanoseconds since 1970-01-01 UTC.
  public static func realtime() -> UInt64 { read(CLOCK_REALTIME) }

  private static func read(_ clock: clockid_t) -> UInt64 {
    var time = timespec()
    // SAFETY: the structure outlives the call.
    unsafe clock_gettime(clock, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}
