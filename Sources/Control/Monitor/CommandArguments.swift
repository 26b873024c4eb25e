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

  init<Value: ArgumentValue>(_ name: String, _ path: any WritableKeyPath<Arguments, Value> & Sendable) {
    self.init(name: name, type: Value.schema, isOptional: false) { (arguments, value) throws(MonitorError) in
      arguments[keyPath: path] = try Value.read(value, name)
    }
  }

  init<Value: ArgumentValue>(_ name: String, _ path: any WritableKeyPath<Arguments, Value?> & Sendable) {
    self.init(name: name, type: Value.schema, isOptional: true) { (arguments, value) throws(MonitorError) in
      arguments[keyPath: path] = try Value.read(value, name)
    }
  }

  /// An argument whose value is one of the words of an enumeration.
  init(
    _ name: String, _ path: any WritableKeyPath<Arguments, String?> & Sendable, of enumeration: String,
    _ words: [String]
  ) {
    self.init(name: name, type: .enumeration(enumeration, words), isOptional: true) {
      (arguments, value) throws(MonitorError) in arguments[keyPath: path] = try Self.word(value, name, of: words)
    }
  }

  /// An argument whose value is a list of words of an enumeration.
  init(
    _ name: String, _ path: any WritableKeyPath<Arguments, [String]> & Sendable, listOf enumeration: String,
    _ words: [String]
  ) {
    self.init(name: name, type: .array(.enumeration(enumeration, words)), isOptional: true) {
      (arguments, value) throws(MonitorError) in
      guard case .array(let elements) = value else { throw .invalidType(name, expected: "array") }
      var list: [String] = []
      for (index, element) in elements.enumerated() {
        list.append(try Self.word(element, "\(name)[\(index)]", of: words))
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

  private static func word(_ value: JSONValue, _ name: String, of words: [String]) throws(MonitorError) -> String {
    let word = try String.read(value, name)
    guard words.contains(word) else {
      throw .generic("Parameter '\(name)' does not accept value \(ErrorText.quoted(word))")
    }
    return word
  }

  /// Fills the fields from the members of an object.
  /// - Throws: QEMU's text for a missing argument, an unexpected one, or one of the wrong type
  ///   (qapi/qobject-input-visitor.c).
  static func read(
    _ fields: [Self], from object: JSONObject, into arguments: inout Arguments
  ) throws(MonitorError) {
    for field in fields {
      if let value = object[field.name] {
        try field.assign(&arguments, value)
      } else if !field.isOptional {
        throw .generic("Parameter '\(field.name)' is missing")
      }
    }
    for member in object.members where !fields.contains(where: { $0.name == member.name }) {
      throw .generic("Parameter '\(member.name)' is unexpected")
    }
  }
}

/// A type of argument: a string, a boolean or an integer.
protocol ArgumentValue: Sendable {
  static var schema: SchemaType { get }
  /// The type's name in errors.
  static var jsonName: String { get }
  /// Returns nil if the value has another type.
  init?(json value: JSONValue)
}

extension ArgumentValue {
  static func read(_ value: JSONValue, _ name: String) throws(MonitorError) -> Self {
    guard let value = Self(json: value) else { throw .invalidType(name, expected: jsonName) }
    return value
  }
}

extension String: ArgumentValue {
  static let schema = SchemaType.string
  static let jsonName = "string"
  init?(json value: JSONValue) { if case .string(let text) = value { self = text } else { return nil } }
}

extension Bool: ArgumentValue {
  static let schema = SchemaType.boolean
  static let jsonName = "boolean"
  init?(json value: JSONValue) { if case .bool(let flag) = value { self = flag } else { return nil } }
}

extension Int64: ArgumentValue {
  static let schema = SchemaType.integer
  static let jsonName = "integer"
  init?(json value: JSONValue) { if case .integer(let number) = value { self = number } else { return nil } }
}

extension CommandArguments {
  init(_ object: JSONObject) throws(MonitorError) {
    self.init()
    try ArgumentField.read(Self.fields, from: object, into: &self)
  }
}

extension MonitorError {
  static func invalidType(_ name: String, expected: String) -> Self {
    .generic("Invalid parameter type for '\(name)', expected: \(expected)")
  }
}
