import JSON

/// A command's arguments as a struct with a typed property for each. The table `fields` fills it from a JSON object.
protocol CommandArguments: Sendable {
  init()
  static var fields: [ArgumentField<Self>] { get }
}

/// A command without arguments.
struct NoArguments: CommandArguments {
  static let fields: [ArgumentField<Self>] = []
}

/// One argument: its name, its type, and the property that stores its value.
struct ArgumentField<Arguments: Sendable>: Sendable {
  let name: String
  let type: SchemaType
  let isOptional: Bool
  let assign: @Sendable (inout Arguments, JSONValue) throws(MonitorError) -> Void

  init(_ name: String, _ path: any WritableKeyPath<Arguments, String> & Sendable) {
    self.init(name: name, type: .string, isOptional: false) { (arguments, value) throws(MonitorError) in
      arguments[keyPath: path] = try Self.string(value, name)
    }
  }

  init(_ name: String, _ path: any WritableKeyPath<Arguments, String?> & Sendable) {
    self.init(name: name, type: .string, isOptional: true) { (arguments, value) throws(MonitorError) in
      arguments[keyPath: path] = try Self.string(value, name)
    }
  }

  init(_ name: String, _ path: any WritableKeyPath<Arguments, Bool?> & Sendable) {
    self.init(name: name, type: .boolean, isOptional: true) { (arguments, value) throws(MonitorError) in
      guard case .bool(let flag) = value else { throw .invalidType(name, expected: "boolean") }
      arguments[keyPath: path] = flag
    }
  }

  init(_ name: String, _ path: any WritableKeyPath<Arguments, Int64?> & Sendable) {
    self.init(name: name, type: .integer, isOptional: true) { (arguments, value) throws(MonitorError) in
      guard case .integer(let number) = value else { throw .invalidType(name, expected: "integer") }
      arguments[keyPath: path] = number
    }
  }

  init(_ name: String, _ path: any WritableKeyPath<Arguments, Int64> & Sendable) {
    self.init(name: name, type: .integer, isOptional: false) { (arguments, value) throws(MonitorError) in
      guard case .integer(let number) = value else { throw .invalidType(name, expected: "integer") }
      arguments[keyPath: path] = number
    }
  }

  /// An argument whose value is a word of an enumeration.
  init(_ name: String, _ path: any WritableKeyPath<Arguments, String?> & Sendable, of words: SchemaType) {
    self.init(name: name, type: words, isOptional: true) { (arguments, value) throws(MonitorError) in
      let word = try Self.string(value, name)
      if case .enumeration(_, let known) = words, !known.contains(word) {
        throw .generic("Parameter '\(name)' does not accept value \(ErrorText.quoted(word))")
      }
      arguments[keyPath: path] = word
    }
  }

  /// An argument whose value is a list of words of an enumeration.
  init(_ name: String, _ path: any WritableKeyPath<Arguments, [String]> & Sendable, of words: SchemaType) {
    self.init(name: name, type: .array(words), isOptional: true) { (arguments, value) throws(MonitorError) in
      guard case .array(let elements) = value else { throw .invalidType(name, expected: "array") }
      var list: [String] = []
      for (index, element) in elements.enumerated() {
        let word = try Self.string(element, "\(name)[\(index)]")
        if case .enumeration(_, let known) = words, !known.contains(word) {
          throw .generic("Parameter '\(name)[\(index)]' does not accept value '\(word)'")
        }
        list.append(word)
      }
      arguments[keyPath: path] = list
    }
  }

  private init(
    name: String, type: SchemaType, isOptional: Bool,
    assign: @escaping @Sendable (inout Arguments, JSONValue) throws(MonitorError) -> Void
  ) {
    self.name = name
    self.type = type
    self.isOptional = isOptional
    self.assign = assign
  }

  private static func string(_ value: JSONValue, _ name: String) throws(MonitorError) -> String {
    guard case .string(let text) = value else { throw .invalidType(name, expected: "string") }
    return text
  }
}

extension CommandArguments {
  /// - Throws: QEMU's text for a missing argument, an unexpected one, or one of the wrong type
  ///   (qapi/qobject-input-visitor.c).
  init(_ object: JSONObject) throws(MonitorError) {
    self.init()
    for field in Self.fields {
      if let value = object[field.name] {
        try field.assign(&self, value)
      } else if !field.isOptional {
        throw .generic("Parameter '\(field.name)' is missing")
      }
    }
    for member in object.members where !Self.fields.contains(where: { $0.name == member.name }) {
      throw .generic("Parameter '\(member.name)' is unexpected")
    }
  }
}

extension MonitorError {
  static func invalidType(_ name: String, expected: String) -> Self {
    .generic("Invalid parameter type for '\(name)', expected: \(expected)")
  }
}
