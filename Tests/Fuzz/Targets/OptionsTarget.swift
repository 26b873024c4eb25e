import Control
import Glibc

// The command line: one argument per line of the input, as bytes that need not be text. Parsing opens nothing, so the
// result does not depend on the host's files.

extension FuzzTarget {
  static let options = FuzzTarget("options") { input throws(Finding) in
    let words = input.lines()
    switch Control.parse(words) {
    case .run, .print: break
    case .fail(let text):
      // Compare bytes: an argument may begin with a combining accent, which would merge with our space into one
      // character.
      try Finding.unless(
        text.utf8.starts(with: "nestling: ".utf8) && text.utf8.last == 0x0a, "not a line in our format: '\(text)'")
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
  /// Returns the rest of the input, split at newlines. Invalid UTF-8 is repaired as in Swift's program arguments.
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
