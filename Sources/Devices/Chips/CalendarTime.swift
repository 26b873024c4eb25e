/// A date and time of day in UTC, in the proleptic Gregorian calendar.
struct CalendarTime: Hashable {
  var year: Int64
  /// 1 to 12.
  var month: Int64
  /// Day of the month, from 1.
  var day: Int64
  var hour: Int64
  var minute: Int64
  var second: Int64

  /// The limits of the years 0 to 9999, in seconds since 1970.
  static let firstSecond: Int64 = -62_167_219_200
  static let lastSecond: Int64 = 253_402_300_799

  private static let secondsPerDay: Int64 = 86_400
  /// The days of an era: 400 years, after which the calendar repeats.
  private static let daysPerEra: Int64 = 146_097
  /// The days from 0000-03-01 to 1970-01-01. Eras start in March, so that a leap day is the last day of its year.
  private static let daysBeforeEpoch: Int64 = 719_468
}

extension CalendarTime {
  /// - Parameter seconds: since 1970, clamped to the years 0 to 9999.
  init(secondsSince1970 seconds: Int64) {
    let seconds = min(max(seconds, Self.firstSecond), Self.lastSecond)
    let (days, secondOfDay) = Self.floorDivide(seconds, Self.secondsPerDay)
    let (era, dayOfEra) = Self.floorDivide(days + Self.daysBeforeEpoch, Self.daysPerEra)
    // Subtract the leap days before this day: one at the end of every 4 years, except 100, but including 400.
    let yearOfEra = (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    // From March on, the lengths of months repeat every five months, which have 153 days.
    let monthFromMarch = (5 * dayOfYear + 2) / 153
    day = dayOfYear - (153 * monthFromMarch + 2) / 5 + 1
    month = monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9
    year = era * 400 + yearOfEra + (month <= 2 ? 1 : 0)
    hour = secondOfDay / 3_600
    minute = secondOfDay / 60 % 60
    second = secondOfDay % 60
  }

  /// The seconds since 1970. A field beyond its range carries into the next one: 00:61 is 01:01.
  var secondsSince1970: Int64 {
    let (carriedYears, monthFromJanuary) = Self.floorDivide(month - 1, 12)
    let monthFromMarch = (monthFromJanuary + 10) % 12
    let yearFromMarch = year + carriedYears - (monthFromMarch >= 10 ? 1 : 0)
    let (era, yearOfEra) = Self.floorDivide(yearFromMarch, 400)
    let dayOfYear = (153 * monthFromMarch + 2) / 5 + day - 1
    let dayOfEra = yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100 + dayOfYear
    let days = era * Self.daysPerEra + dayOfEra - Self.daysBeforeEpoch
    return days * Self.secondsPerDay + hour * 3_600 + minute * 60 + second
  }

  /// The day of the week: 1 for Sunday to 7 for Saturday.
  var dayOfWeek: Int64 {
    let days = Self.floorDivide(secondsSince1970, Self.secondsPerDay).quotient
    return Self.floorDivide(days + 4, 7).remainder + 1  // 1970-01-01 was a Thursday.
  }

  private static func floorDivide(_ value: Int64, _ divisor: Int64) -> (quotient: Int64, remainder: Int64) {
    let (quotient, remainder) = value.quotientAndRemainder(dividingBy: divisor)
    return remainder < 0 ? (quotient - 1, remainder + divisor) : (quotient, remainder)
  }
}

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
