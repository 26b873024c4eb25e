import JSON

/// The type of an argument or an answer, for `query-qmp-schema` (qapi/introspect.json).
indirect enum SchemaType: Hashable, Sendable {
  case string, integer, boolean, any
  case enumeration(String, [String])
  case array(SchemaType)
  case object(String, SchemaMembers)

  static let empty = SchemaType.object("empty", [:])

  static func list(_ name: String, _ members: SchemaMembers) -> SchemaType { .array(.object(name, members)) }
}

/// The members of an object, written as in QEMU's schema: a `*` before the name marks an optional member.
struct SchemaMembers: Hashable, Sendable, ExpressibleByDictionaryLiteral {
  struct Member: Hashable, Sendable {
    let name: String
    let type: SchemaType
    let isOptional: Bool
  }

  let all: [Member]

  init(_ members: [Member]) { all = members }

  init(dictionaryLiteral members: (String, SchemaType)...) {
    all = members.map { name, type in
      let isOptional = name.hasPrefix("*")
      return Member(name: isOptional ? String(name.dropFirst()) : name, type: type, isOptional: isOptional)
    }
  }
}

/// Writes the schema of commands and events: each type once. Types refer to each other by number: like QEMU, the schema
/// hides their names.
struct SchemaWriter {
  private var entities: [JSONValue] = []
  private var names: [SchemaType: String] = [:]

  static func schema(of commands: [MonitorCommand], events: [MonitorEventName]) -> JSONValue {
    var writer = SchemaWriter()
    for command in commands {
      let argument = writer.name(.object(command.name + "-arg", command.arguments))
      let answer = writer.name(command.answer)
      writer.entities.append([
        "name": .string(command.name), "meta-type": "command", "arg-type": .string(argument),
        "ret-type": .string(answer), "allow-oob": false,
      ])
    }
    for event in events {
      let argument = writer.name(.object(event.rawValue + "-arg", event.members))
      writer.entities.append([
        "name": .string(event.rawValue), "meta-type": "event", "arg-type": .string(argument),
      ])
    }
    return .array(writer.entities)
  }

  /// Returns the name of a type, and writes the type to the schema the first time.
  private mutating func name(_ type: SchemaType) -> String {
    // All objects without members are the same type.
    let type = if case .object(_, [:]) = type { SchemaType.empty } else { type }
    if let name = names[type] { return name }
    switch type {
    case .string: return builtin(type, "str", "string")
    case .integer: return builtin(type, "int", "int")
    case .boolean: return builtin(type, "bool", "boolean")
    case .any: return builtin(type, "any", "value")
    case .array(let element):
      let elementName = name(element)
      let name = "[\(elementName)]"
      names[type] = name
      entities.append(["name": .string(name), "meta-type": "array", "element-type": .string(elementName)])
      return name
    case .enumeration(_, let words):
      let name = newName(type)
      entities.append([
        "name": .string(name), "meta-type": "enum",
        "members": .array(words.map { ["name": .string($0)] }), "values": .array(words.map { .string($0) }),
      ])
      return name
    case .object(_, let members):
      let name = newName(type)
      var list: [JSONValue] = []
      for member in members.all {
        list.append([
          "name": .string(member.name), "type": .string(self.name(member.type)),
          "default": member.isOptional ? JSONValue.null : nil,
        ])
      }
      entities.append(["name": .string(name), "meta-type": "object", "members": .array(list)])
      return name
    }
  }

  private mutating func newName(_ type: SchemaType) -> String {
    let name = String(names.count)
    names[type] = name
    return name
  }

  private mutating func builtin(_ type: SchemaType, _ name: String, _ json: String) -> String {
    names[type] = name
    entities.append(["name": .string(name), "meta-type": "builtin", "json-type": .string(json)])
    return name
  }
}
