/// Lays out text in columns, for the tables of the monitor.
struct Columns {
  private var rows: [[String]] = []
  private let indent: Int
  /// The indexes of these columns, from 0.
  private let rightAligned: Set<Int>

  init(indent: Int, rightAligned: Set<Int> = []) {
    self.indent = indent
    self.rightAligned = rightAligned
  }

  mutating func add(_ row: String...) { rows.append(row) }
  mutating func add(_ row: [String]) { rows.append(row) }

  var isEmpty: Bool { rows.isEmpty }

  var text: String {
    var widths: [Int] = []
    for row in rows {
      for (index, cell) in row.enumerated() where !cell.isEmpty {
        while widths.count <= index { widths.append(0) }
        // The last cell of a row does not widen its column, unless the column is right-aligned.
        if index < row.count - 1 || rightAligned.contains(index) { widths[index] = max(widths[index], cell.utf8.count) }
      }
    }
    let margin = String(repeating: " ", count: indent)
    return rows.map { row in
      var line = margin
      for (index, cell) in row.enumerated() {
        let padding = String(
          repeating: " ", count: max(0, (index < widths.count ? widths[index] : 0) - cell.utf8.count))
        line += rightAligned.contains(index) ? padding + cell : cell + padding
        if index < row.count - 1 { line += "  " }
      }
      while line.last == " " { line.removeLast() }
      return line + "\n"
    }.joined()
  }
}

enum NumberFormat {
  static func hexadecimal(_ value: some BinaryInteger) -> String { "0x" + String(value, radix: 16) }

  /// Returns a table entry with all 16 hexadecimal digits, as in `0x0000000003099003`.
  static func entry(_ value: UInt64) -> String { "0x" + digits(value, 16) }

  /// Returns at least `count` hexadecimal digits, without a prefix.
  static func digits(_ value: some BinaryInteger, _ count: Int) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: max(0, count - digits.utf8.count)) + digits
  }

  /// Returns the size of a page or a table: `4K`, `2M`, `1G`.
  static func pageSize(_ bytes: UInt64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] as [(UInt64, String)]
    where bytes >= 1 << shift && bytes & (1 << shift - 1) == 0 {
      return "\(bytes >> shift)\(unit)"
    }
    return "\(bytes)"
  }
}
