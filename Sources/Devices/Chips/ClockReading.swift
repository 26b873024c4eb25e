/// A clock's time: seconds since 1970-01-01 00:00 UTC, and nanoseconds within the second.
public struct ClockReading: Hashable, Comparable, Sendable {
  public let seconds: Int64
  /// 0 to 999,999,999.
  public let nanoseconds: Int64

  static let nanosecondsPerSecond: Int64 = 1_000_000_000

  /// - Parameters:
  ///   - seconds: clamped to the years 0 to 9999.
  ///   - nanoseconds: any number; whole seconds carry.
  public init(seconds: Int64, nanoseconds: Int64) {
    var (carried, rest) = nanoseconds.quotientAndRemainder(dividingBy: Self.nanosecondsPerSecond)
    if rest < 0 {
      carried -= 1
      rest += Self.nanosecondsPerSecond
    }
    let clamped = min(max(seconds, CalendarTime.firstSecond), CalendarTime.lastSecond)
    self.seconds = min(max(clamped + carried, CalendarTime.firstSecond), CalendarTime.lastSecond)
    self.nanoseconds = rest
  }

  public static func < (a: ClockReading, b: ClockReading) -> Bool {
    (a.seconds, a.nanoseconds) < (b.seconds, b.nanoseconds)
  }
}
