/// A moment as a clock shows it: UTC, proleptic Gregorian calendar.
struct CalendarTime: Hashable {
  var year: Int64
  /// 1 to 12.
  var month: Int64
  /// Day of the month, from 1.
  var day: Int64
  var hour: Int64
  var minute: Int64
  var second: Int64

  /// The years that four digits show.
  static let firstSecond: Int64 = -62_167_219_200
  static let lastSecond: Int64 = 253_402_300_799

  private static let secondsPerDay: Int64 = 86_400
  /// Days of 400 years, after which the calendar repeats.
  private static let daysPerEra: Int64 = 146_097
  /// Days from 0000-03-01, where eras start so that a leap day is a year's last, to 1970-01-01.
  private static let daysBeforeEpoch: Int64 = 719_468

  init(year: Int64, month: Int64, day: Int64, hour: Int64, minute: Int64, second: Int64) {
    self.year = year
    self.month = month
    self.day = day
    self.hour = hour
    self.minute = minute
    self.second = second
  }

  /// - Parameter seconds: since 1970; beyond the years 0 to 9999 the nearest of them.
  init(secondsSince1970 seconds: Int64) {
    let seconds = min(max(seconds, Self.firstSecond), Self.lastSecond)
    let (days, secondOfDay) = Self.floorDivide(seconds, Self.secondsPerDay)
    let (era, dayOfEra) = Self.floorDivide(days + Self.daysBeforeEpoch, Self.daysPerEra)
    // Take out the leap days before this one, each at the end of its 4, 100 and 400 years.
    let yearOfEra = (dayOfEra - dayOfEra / 1_460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    // From March on, months of 31 and 30 days alternate in runs of five that are 153 days long.
    let monthFromMarch = (5 * dayOfYear + 2) / 153
    day = dayOfYear - (153 * monthFromMarch + 2) / 5 + 1
    month = monthFromMarch < 10 ? monthFromMarch + 3 : monthFromMarch - 9
    year = era * 400 + yearOfEra + (month <= 2 ? 1 : 0)
    hour = secondOfDay / 3_600
    minute = secondOfDay / 60 % 60
    second = secondOfDay % 60
  }

  /// A field that is out of its range carries, as in arithmetic: 00:61 is 01:01.
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

  /// 1 for Sunday to 7.
  var dayOfWeek: Int64 {
    let days = Self.floorDivide(secondsSince1970, Self.secondsPerDay).quotient
    return Self.floorDivide(days + 4, 7).remainder + 1  // 1970-01-01 was a Thursday.
  }

  private static func floorDivide(_ value: Int64, _ divisor: Int64) -> (quotient: Int64, remainder: Int64) {
    let (quotient, remainder) = value.quotientAndRemainder(dividingBy: divisor)
    return remainder < 0 ? (quotient - 1, remainder + divisor) : (quotient, remainder)
  }
}
