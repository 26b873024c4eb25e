/// A JSON value (RFC 8259). An object keeps the order of its members; each name occurs once.
public enum JSONValue: Hashable, Sendable {
  case null
  case bool(Bool)
  case integer(Int64)
  /// An integer above Int64.max. Smaller ones are always `integer`.
  case unsigned(UInt64)
  /// A finite number: JSON cannot express infinities and NaN.
  case real(Double)
  case string(String)
  case array([JSONValue])
  case object(JSONObject)

  /// Whether the value contains other values.
  var isContainer: Bool {
    switch self {
    case .array, .object: true
    case .null, .bool, .integer, .unsigned, .real, .string: false
    }
  }
}

extension JSONValue {
  /// Makes an integer of up to 2^64-1.
  public init(_ value: UInt64) { self = Int64(exactly: value).map { .integer($0) } ?? .unsigned(value) }
}

extension JSONValue: ExpressibleByStringLiteral, ExpressibleByBooleanLiteral, ExpressibleByIntegerLiteral,
  ExpressibleByArrayLiteral, ExpressibleByDictionaryLiteral
{
  public init(stringLiteral value: String) { self = .string(value) }
  public init(booleanLiteral value: Bool) { self = .bool(value) }
  public init(integerLiteral value: Int64) { self = .integer(value) }
  public init(arrayLiteral elements: JSONValue...) { self = .array(elements) }
  /// A member whose value is nil is left out. The last of several members with the same name counts.
  public init(dictionaryLiteral elements: (String, JSONValue?)...) {
    var object = JSONObject()
    for (name, value) in elements { object[name] = value }
    self = .object(object)
  }
}

/// The members of an object, in the order in which they were given.
public struct JSONObject: Hashable, Sendable {
  public struct Member: Hashable, Sendable {
    public let name: String
    public var value: JSONValue
  }

  public private(set) var members: [Member] = []

  public init() {}

  /// The value of a member. A linear search, for messages with few members. Setting an existing member keeps its place.
  public subscript(name: String) -> JSONValue? {
    get { members.first { $0.name == name }?.value }
    set {
      let index = members.firstIndex { $0.name == name }
      switch (index, newValue) {
      case (let index?, let value?): members[index].value = value
      case (let index?, nil): members.remove(at: index)
      case (nil, let value?): members.append(Member(name: name, value: value))
      case (nil, nil): break
      }
    }
  }

  /// Appends a member whose name the caller knows to be new.
  mutating func append(_ name: String, _ value: JSONValue) { members.append(Member(name: name, value: value)) }
}

extension JSONObject: ExpressibleByDictionaryLiteral {
  /// A member whose value is nil is left out.
  public init(dictionaryLiteral elements: (String, JSONValue?)...) {
    for (name, value) in elements { self[name] = value }
  }
}
