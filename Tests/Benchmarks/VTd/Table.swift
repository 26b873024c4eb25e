/// Prints the measurements in columns.
struct Table {
  private static let widths = [36, 9, 9, 9, 7, 9, 9, 9]

  static func print(_ measurements: [Measurement], rounds: Int) {
    row(["ns each, processor time,", "threads", "Nestling", "plain C", "ratio", "scaling", "C scales", "waits"])
    row(["medians of \(rounds) rounds"])
    for measurement in measurements {
      for threads in 1...2 {
        let unit = measurement.unitTime(threads: threads)
        let c = measurement.cTime(threads: threads)
        var cells = [
          threads == 1 ? measurement.name : "", "\(threads)", fixed(unit, 1), fixed(c, 1), fixed(unit / c, 2),
        ]
        if threads == 2 {
          cells.append(fixed(2 * measurement.unitTime(threads: 1) / unit, 2))
          cells.append(fixed(2 * measurement.cTime(threads: 1) / c, 2))
          let waits = measurement.unit[1].reduce(0) { $0 + $1.waits }
          cells.append("\(waits)")
        }
        row(cells)
      }
    }
  }

  /// Prints invalidations per second. They do not scale with threads, because there is one queue.
  static func printRates(_ measurement: Measurement) {
    Swift.print("")
    row([measurement.name, "", "Nestling", "plain C", "ratio"])
    for (threads, what) in [(1, "by one thread"), (2, "while another device's requests hit")] {
      let unit = measurement.unitTime(threads: threads)
      let c = measurement.cTime(threads: threads)
      row(["  " + what, "\(threads)", fixed(1e3 / unit, 2), fixed(1e3 / c, 2), fixed(unit / c, 2)])
    }
  }

  private static func row(_ cells: [String]) {
    var line = ""
    for (index, cell) in cells.enumerated() {
      let space = String(repeating: " ", count: max(widths[index] - cell.count, 0))
      line += index == 0 ? cell + space : space + cell
    }
    Swift.print(line)
  }

  /// Rounds to `digits` decimal places.
  private static func fixed(_ value: Double, _ digits: Int) -> String {
    guard value.isFinite else { return "-" }
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    let whole = Int((value * scale).rounded())
    let text = String(whole)
    let padded = String(repeating: "0", count: max(digits + 1 - text.count, 0)) + text
    return "\(padded.dropLast(digits)).\(padded.suffix(digits))"
  }
}
