import Machine

/// Text for properties and their values.
extension ErrorText {
  static func text(for error: PropertyError, owner: String?) -> String {
    switch error {
    case .unknown(let name, let known):
      "\(owner.map { "\($0) has no property" } ?? "unknown property") \(quoted(name))"
        + list("nearest", NearestNames.to(name, among: known))
    case .value(let name, let text, let error): "\(name) \(self.text(for: error, value: text))"
    case .contradiction(let name, let otherName):
      "\(name) and \(otherName) are the same property, but have different values"
    case .rule(let otherwise): otherwise
    }
  }

  /// Returns the text after the property's name.
  private static func text(for error: ValueError, value: String) -> String {
    switch error {
    case .notBoolean: "must be on or off, not \(quoted(value))"
    case .notNumber: "must be a whole number (decimal, or hexadecimal with 0x), not \(quoted(value))"
    case .notSize: "must be a size (a number, and K, M, G or T), not \(quoted(value))"
    case .outOfRange(let lowest, let highest): "must be between \(lowest) and \(highest), not \(quoted(value))"
    case .notPowerOfTwo(let lowest, let highest):
      "must be a power of two between \(lowest) and \(highest), not \(quoted(value))"
    case .notOneOf(let words): "must be \(alternatives(words)), not \(quoted(value))"
    case .notPCIAddress:
      "must be a device number from 01 to 1e, hexadecimal, with an optional function from .0 to .7, not \(quoted(value))"
    case .notIdentifier: "must be a letter, then letters, digits, '-', '.' or '_', not \(quoted(value))"
    case .tooLong(let bytes): "must be at most \(bytes) bytes long"
    case .empty: "must not be empty"
    case .refused(let reason): "cannot be \(quoted(value)): \(reason)"
    }
  }

  private static func alternatives(_ words: [String]) -> String {
    guard let last = words.last, words.count > 1 else { return words.first ?? "" }
    return words.dropLast().joined(separator: ", ") + " or " + last
  }
}
