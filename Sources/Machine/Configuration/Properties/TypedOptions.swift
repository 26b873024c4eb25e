import VTd

/// Options as a struct: a typed field for each property, and the table that fills the fields from names and values.
///
/// After `init(_:)`, code uses the fields and looks up no property by name.
public protocol TypedOptions: Sendable {
  /// Creates options with every property at its default.
  init()

  static var properties: [Property<Self>] { get }
  /// `properties`, and those that a refining protocol adds to all its types.
  static var allProperties: [Property<Self>] { get }
  /// Conditions between properties, checked in order after all of them are set.
  static var rules: [PropertyRule<Self>] { get }
}

/// The options of one device or object type.
public protocol QOMOptions: TypedOptions {
  /// The name after `-device` or `-object`.
  static var typeName: String { get }
  /// Other names of the type.
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

/// A condition between properties.
public struct PropertyRule<Options: Sendable>: Sendable {
  /// Throws if the condition does not hold.
  let check: @Sendable (Options) throws(PropertyError) -> Void

  public init(_ check: @escaping @Sendable (Options) throws(PropertyError) -> Void) { self.check = check }

  /// - Parameter problem: the text of the error message, which is a part of the table, like help.
  public init(otherwise problem: String, _ holds: @escaping @Sendable (Options) -> Bool) {
    check = { (options) throws(PropertyError) in if !holds(options) { throw .rule(problem) } }
  }
}

/// A property's name and value as text, not checked yet.
public struct PropertyAssignment: Hashable, Sendable {
  public var name: String
  /// The value's text; nil if only the name was given, which means `on`, or `off` for a name with the prefix `no`.
  public var value: String?

  public init(name: String, value: String?) {
    self.name = name
    self.value = value
  }
}

/// The reason why names and values are not valid options.
public enum PropertyError: Error, Hashable, Sendable {
  case unknown(name: String, known: [String])
  case value(name: String, text: String, ValueError)
  /// Two spellings of one property have different values.
  case contradiction(name: String, otherName: String)
  /// A rule does not hold. The text is the rule's message.
  case rule(String)
  /// A remapping unit cannot have these options.
  case unit(UnitOptionError)
}

/// A property as help and introspection show it.
public struct PropertyDescription: Hashable, Sendable {
  public let name: String
  public let aliases: [String]
  public let typeName: String
  public let help: String
  /// The default value; nil if the property is unset by default.
  public let defaultText: String?

  /// The type of a property that may be given several times.
  public static let listType = "[String]"
}

/// A property with its current value.
public struct PropertyState: Hashable, Sendable {
  public let name: String
  public let typeName: String
  /// The current value; nil if the property is unset.
  public let text: String?
}

extension TypedOptions {
  /// The properties with their values, in the order of the table.
  public var propertyStates: [PropertyState] {
    Self.allProperties.map { PropertyState(name: $0.name, typeName: $0.typeName, text: $0.show(self)) }
  }

  public static var allProperties: [Property<Self>] { properties }
  public static var rules: [PropertyRule<Self>] { [] }

  /// The properties, sorted by name.
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

  /// Sets the named properties and checks the rules. If a name is given twice, the later value counts, as in QEMU,
  /// unless the property is a list. Two spellings of one property must agree.
  public mutating func apply(_ assignments: [PropertyAssignment]) throws(PropertyError) {
    let properties = Self.allProperties
    var given = GivenProperties(spellings: properties.map { [$0.name] + $0.aliases })
    for assignment in assignments {
      let (index, name, text) = try given.property(of: assignment)
      try mapError(try properties[index].assign(&self, text)) { PropertyError.value(name: name, text: text, $0) }
      // Compare parsed values: `on` and `yes` are equal.
      try given.record(properties[index].show(self) ?? text, of: index, as: name)
    }
    for rule in Self.rules { try rule.check(self) }
  }
}

/// The properties that assignments name. Independent of the options' type, so that its code exists once.
struct GivenProperties {
  /// The name and the aliases of each property.
  let spellings: [[String]]
  /// The last assignment of each property.
  private var last: [Int: (spelling: String, text: String)] = [:]

  init(spellings: [[String]]) { self.spellings = spellings }

  /// Returns the index of the assignment's property, the spelling of its name, and the text of the value.
  func property(
    of assignment: PropertyAssignment
  ) throws(PropertyError) -> (index: Int, name: String, text: String) {
    let name = assignment.name
    if let index = index(of: name) { return (index, name, assignment.value ?? "on") }
    // QEMU's old form of `off`: `nowait`.
    if assignment.value == nil, name.hasPrefix("no") {
      let name = String(name.dropFirst(2))
      if let index = index(of: name) { return (index, name, "off") }
    }
    throw .unknown(name: name, known: spellings.flatMap(\.self))
  }

  private func index(of name: String) -> Int? { spellings.firstIndex { $0.contains(name) } }

  /// Records the value of a property. Throws if another spelling of the property had a different value.
  mutating func record(_ text: String, of index: Int, as name: String) throws(PropertyError) {
    if let earlier = last[index], earlier.spelling != name, earlier.text != text {
      throw .contradiction(name: earlier.spelling, otherName: name)
    }
    last[index] = (name, text)
  }
}
