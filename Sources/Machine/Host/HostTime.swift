import Linux

/// The host's clocks, in nanoseconds.
public enum HostTime {
  /// The time of day since 1970.
  public static var now: UInt64 { Clock.realtime() }
  /// The time since an unspecified moment, which never goes back.
  public static var monotonic: UInt64 { Clock.monotonic() }
}
