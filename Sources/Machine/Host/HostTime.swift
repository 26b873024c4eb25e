import Linux

/// The host's time of day, in nanoseconds since 1970.
public enum HostTime {
  public static var now: UInt64 { Clock.realtime() }
  /// Nanoseconds since some moment: a time that never goes back.
  public static var monotonic: UInt64 { Clock.monotonic() }
}
