import Control
import Glibc

// The command line: one argument a line of the input, as bytes that need be no text. Reading it opens nothing,
// so it comes to the same where nothing can be opened.

extension FuzzTarget {
  static let options = FuzzTarget("options") { input throws(Finding) in
    let words = input.lines()
    switch Control.parse(words) {
    case .run, .print: break
    case .fail(let text):
      // As bytes: what a person typed may begin with an accent, which would be one character with our space.
      try Finding.unless(
        text.utf8.starts(with: "nestling: ".utf8) && text.utf8.last == 0x0a, "not a line of ours: '\(text)'")
      try Finding.unless(
        text.unicodeScalars.dropLast().allSatisfy { $0.value >= 0x20 && $0.value != 0x7f },
        "control characters in '\(text)'")
      for error in [ENOENT, EACCES, EMFILE, ENXIO, EISDIR, ENOTDIR, ELOOP] {
        try Finding.unless(!text.contains(String(cString: strerror(error))), "something was opened: '\(text)'")
      }
    }
  }
}

extension FuzzInput {
  /// What is left, cut at newlines. What is no UTF-8 is repaired, as Swift does with a program's arguments.
  mutating func lines() -> [String] {
    var lines: [String] = []
    var line: [UInt8] = []
    while !isEmpty {
      let byte = byte()
      if byte == 0x0a {
        lines.append(String(decoding: line, as: UTF8.self))
        line = []
      } else {
        line.append(byte)
      }
    }
    lines.append(String(decoding: line, as: UTF8.self))
    return lines
  }
}
