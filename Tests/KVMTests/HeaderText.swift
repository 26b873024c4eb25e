/// The declarations of one of our C headers, read from its text, so that a test compares every declaration without a
/// separate list. It understands only the subset of C that these headers use.
struct HeaderText {
  struct Structure {
    let name: String
    /// Members that have no members themselves, as C writes them: `io.port`.
    let fields: [String]
  }

  private(set) var structures: [Structure] = []
  /// Requests and enumerators.
  private(set) var constants: [String] = []

  init(_ text: String) {
    var rest = Self.withoutComments(text)[...]
    while let line = Self.takeLine(&rest) {
      let words = line.split { $0 == " " || $0 == "\t" }
      if line.hasPrefix("NESTLING_REQUEST(") {
        constants.append(String(line.dropFirst(17).prefix { $0 != "," }))
      } else if words.first == "#define", words.count > 2, !words[1].contains("(") {
        constants.append(String(words[1]))
      } else if words.first == "struct", words.last == "{", words.count == 3 {
        structures.append(Structure(name: String(words[1]), fields: Self.fields(Self.takeBody(&rest))))
      } else if words.first == "enum", words.contains("{") {
        // If the brace ends the line, the body begins on the next one.
        let body = line.contains("}") ? line.drop { $0 != "{" }.dropFirst().prefix { $0 != "}" } : Self.takeBody(&rest)
        for part in Self.split(body, at: ",") {
          let name = part.prefix { $0 != "=" }.filter { !$0.isWhitespace }
          if !name.isEmpty { constants.append(name) }
        }
      }
    }
  }

  private static func withoutComments(_ text: String) -> String {
    var result = ""
    for line in text.split(separator: "\n", omittingEmptySubsequences: false) {
      if let comment = line.firstRange(of: "//") { result += line[..<comment.lowerBound] } else { result += line }
      result += "\n"
    }
    return result
  }

  private static func takeLine(_ rest: inout Substring) -> Substring? {
    if rest.isEmpty { return nil }
    let line = rest.prefix { $0 != "\n" }
    rest = rest[line.endIndex...].dropFirst()
    return line
  }

  /// Returns the text up to the brace that closes one already open.
  private static func takeBody(_ rest: inout Substring) -> Substring {
    var depth = 1
    var end = rest.startIndex
    while end < rest.endIndex {
      if rest[end] == "{" { depth += 1 }
      if rest[end] == "}" { depth -= 1 }
      if depth == 0 { break }
      end = rest.index(after: end)
    }
    let body = rest[..<end]
    rest = rest[end...].dropFirst()
    return body
  }

  /// Splits at separators outside parentheses.
  private static func split(_ text: Substring, at separator: Character) -> [Substring] {
    var parts: [Substring] = []
    var depth = 0
    var start = text.startIndex
    for index in text.indices {
      if text[index] == "(" { depth += 1 }
      if text[index] == ")" { depth -= 1 }
      if depth == 0, text[index] == separator {
        parts.append(text[start..<index])
        start = text.index(after: index)
      }
    }
    return parts + [text[start...]]
  }

  private static func fields(_ body: Substring) -> [String] {
    var names: [String] = []
    var rest = body.drop { $0.isWhitespace }
    while !rest.isEmpty {
      let head = rest.prefix { $0 != "{" && $0 != ";" }
      rest = rest[head.endIndex...]
      if rest.first == "{" {
        rest = rest.dropFirst()
        let inner = fields(takeBody(&rest))
        let declarator = rest.prefix { $0 != ";" }
        rest = rest[declarator.endIndex...]
        let name = declarator.filter { !$0.isWhitespace }
        names += inner.map { name.isEmpty ? $0 : "\(name).\($0)" }
      } else {
        for part in head.split(separator: ",") {
          let declarator = part.prefix { $0 != "[" }
          if let name = declarator.split(whereSeparator: { $0.isWhitespace }).last { names.append(String(name)) }
        }
      }
      rest = rest.dropFirst().drop { $0.isWhitespace }
    }
    return names
  }
}
