/// Options as a struct: a typed field for each property, and the table that fills it from names and values.
///
/// After `init(_:)` nothing is looked up by name: the fields are the truth.
public protocol TypedOptions: Sendable {
  /// Every property at its default.
  init()

  static var properties: [Property<Self>] { get }
  /// `properties`, and those that a refining protocol adds for all of its kinds.
  static var allProperties: [Property<Self>] { get }
  /// What must hold between properties, checked in order once all of them are set.
  static var rules: [PropertyRule<Self>] { get }
}

/// The options of one kind of device or object.
public protocol QOMOptions: TypedOptions {
  /// As typed after `-device` or `-object`.
  static var typeName: String { get }
  /// Other names for the kind.
  static var typeAliases: [String] { get }
  static var summary: String { get }

  var id: Identifier? { get set }
}

extension QOMOptions {
  public static var typeAliases: [String] { [] }

  public static var allProperties: [Property<Self>] {
    [Property("id", \.id, help: "Name by which other options refer to it")] + properties
  }
}

/// Something that must hold between properties.
public struct PropertyRule<Options: Sendable>: Sendable {
  /// What is wrong, or nil: part of the table, as help is.
  let problem: @Sendable (Options) -> String?

  public init(_ problem: @escaping @Sendable (Options) -> String?) { self.problem = problem }

  public init(otherwise problem: String, _ holds: @escaping @Sendable (Options) -> Bool) {
    self.problem = { holds($0) ? nil : problem }
  }
}

/// A name and a value as somebody gave them.
public struct PropertyAssignment: Hashable, Sendable {
  public var name: String
  /// Nil where only the name was given: then it is `on`, or `off` for a name with `no` before it.
  public var value: String?

  public init(name: String, value: String?) {
    self.name = name
    self.value = value
  }
}

/// Why names and values make no options.
public enum PropertyError: Error, Hashable, Sendable {
  case unknown(name: String, known: [String])
  case value(name: String, text: String, ValueError)
  /// Two spellings of one property say different things.
  case contradiction(name: String, otherName: String)
  /// A rule does not hold; the text is the table's.
  case rule(String)
}

/// A property as help and introspection show it.
public struct PropertyDescription: Hashable, Sendable {
  public let name: String
  public let aliases: [String]
  public let typeName: String
  public let help: String
  /// Nil where the property is unset by default.
  public let defaultText: String?
}

/// A property with the value that it has.
public struct PropertyState: Hashable, Sendable {
  public let name: String
  public let typeName: String
  /// Nil where it is unset.
  public let text: String?
}

extension TypedOptions {
  /// In the order of the table.
  public var propertyStates: [PropertyState] {
    Self.allProperties.map { PropertyState(name: $0.name, typeName: $0.typeName, text: $0.show(self)) }
  }

  public static var allProperties: [Property<Self>] { properties }
  public static var rules: [PropertyRule<Self>] { [] }

  /// In the order of their names.
  public static var propertyDescriptions: [PropertyDescription] {
    let defaults = Self()
    return allProperties.map {
      PropertyDescription(
        name: $0.name, aliases: $0.aliases, typeName: $0.typeName, help: $0.help, defaultText: $0.show(defaults))
    }.sorted { $0.name < $1.name }
  }

  public init(_ assignments: [PropertyAssignment]) throws(PropertyError) {
    self.init()
    try apply(assignments)
  }

  /// Sets the named properties and checks the rules. A name given twice takes the later value, as in
  /// QEMU; two spellings of one property must agree.
  public mutating func apply(_ assignments: [PropertyAssignment]) throws(PropertyError) {
    let properties = Self.allProperties
    var given: [String: (spelling: String, text: String)] = [:]
    for assignment in assignments {
      var name = assignment.name
      var text = assignment.value ?? "on"
      var property = properties.first { $0.answers(to: name) }
      if property == nil, assignment.value == nil, name.hasPrefix("no") {
        // QEMU's old way to say off: `nowait`.
        name = String(name.dropFirst(2))
        text = "off"
        property = properties.first { $0.answers(to: name) }
      }
      guard let property else {
        throw .unknown(name: assignment.name, known: properties.flatMap { [$0.name] + $0.aliases })
      }
      do {
        try property.assign(&self, text)
      } catch {
        throw .value(name: name, text: text, error)
      }
      // Compared as they are kept: `on` and `yes` are the same thing.
      let value = property.show(self) ?? text
      if let earlier = given[property.name], earlier.spelling != name, earlier.text != value {
        throw .contradiction(name: earlier.spelling, otherName: name)
      }
      given[property.name] = (name, value)
    }
    for rule in Self.rules {
      if let problem = rule.problem(self) { throw .rule(problem) }
    }
  }
}
