import JSON
import Machine

/// Commands that add and remove character devices while the machine runs (qapi/char.json). The schema leaves out the
/// types and members that only QEMU supports.
extension MonitorCommands {
  static let chardevCommands: [MonitorCommand] = [
    MonitorCommand(
      "chardev-add",
      open: [
        "id": .string,
        "backend": .object(
          "ChardevBackend",
          [
            "type": .enumeration("ChardevBackendKind", ChardevTypeArguments.types.map { $0.typeName }),
            "data": .any,
          ]),
      ]
    ) { (object, target) throws(MonitorError) in
      let (id, options) = try ChardevTypeArguments.read(object)
      try ChardevTypeArguments.add(options, id, to: target)
    },
    MonitorCommand("chardev-remove", argument: "id", ChardevTypeArguments.remove),
  ]
}

/// The arguments of `chardev-add` and `chardev-remove`, in QMP and HMP.
enum ChardevTypeArguments {
  /// The types that `chardev-add` accepts. `stdio` is missing: only the command line can assign standard input.
  static let types: [any ChardevOptions.Type] = [
    FileChardevOptions.self, NullChardevOptions.self, SocketChardevOptions.self,
  ]

  static func add(
    _ options: any ChardevOptions, _ name: String, to target: any MonitorTarget
  ) throws(MonitorError) {
    guard let id = try? Identifier(text: name) else { throw .generic("Parameter 'id' expects an identifier") }
    try mapError(try target.addChardev(options, id: id), MonitorError.init(chardev:))
  }

  @Sendable
  static func remove(_ name: String, from target: any MonitorTarget) throws(MonitorError) {
    try mapError(try target.removeChardev(name), MonitorError.init(chardev:))
  }

  /// Parses an option string, as HMP's `chardev-add` takes it.
  static func read(option text: String) throws(MonitorError) -> (id: String, options: any ChardevOptions) {
    let assignments = try MonitorError.assignments(text, impliedName: "backend")
    func value(_ name: String) -> String? { assignments.last { $0.name == name }?.value }
    guard let id = value("id") else { throw .generic("Parameter 'id' is missing") }
    guard let typeName = value("backend") else { throw .generic("Parameter 'backend' is missing") }
    guard let chardevType = types.first(where: { $0.typeName == typeName }) else {
      throw .generic("\(ErrorText.quoted(typeName)) is not a valid char driver name")
    }
    return (id, try options(chardevType, id, assignments.filter { $0.name != "backend" && $0.name != "id" }))
  }

  static func read(_ object: JSONObject) throws(MonitorError) -> (id: String, options: any ChardevOptions) {
    var arguments = NestedArguments(object)
    let id = try arguments.string("id")
    var backend = try arguments.object("backend")
    try arguments.end()
    let typeName = try backend.string("type")
    guard let chardevType = types.first(where: { $0.typeName == typeName }) else {
      throw .generic("Parameter 'type' does not accept value \(ErrorText.quoted(typeName))")
    }
    var data = try backend.object("data")
    try backend.end()
    var assignments: [PropertyAssignment] = []
    func set(_ name: String, _ value: String?) {
      if let value { assignments.append(PropertyAssignment(name: name, value: value)) }
    }
    switch chardevType {
    case is FileChardevOptions.Type:
      set("path", try data.string("out"))
      set("append", try data.optionalBoolean("append")?.text)
    case is SocketChardevOptions.Type:
      try readAddress(try data.object("addr"), set)
      let server = try data.optionalBoolean("server") ?? true
      set("server", server.text)
      set("wait", (try data.optionalBoolean("wait") ?? (server ? false : nil))?.text)
      set("reconnect", try data.optionalInteger("reconnect").map { String($0) })
      set("telnet", try data.optionalBoolean("telnet")?.text)
    default: break
    }
    try data.end()
    return (id, try options(chardevType, id, assignments))
  }

  /// Reads a SocketAddressLegacy.
  private static func readAddress(
    _ address: NestedArguments, _ set: (String, String?) -> Void
  ) throws(MonitorError) {
    var address = address
    let typeName = try address.string("type")
    var data = try address.object("data")
    try address.end()
    switch typeName {
    case "unix": set("path", try data.string("path"))
    case "inet":
      set("host", try data.string("host"))
      set("port", try data.string("port"))
    default: throw .generic("Parameter 'type' does not accept value \(ErrorText.quoted(typeName))")
    }
    try data.end()
  }

  private static func options(
    _ chardevType: any ChardevOptions.Type, _ id: String, _ assignments: [PropertyAssignment]
  ) throws(MonitorError) -> any ChardevOptions {
    try mapError(try chardevType.init(assignments)) {
      MonitorError.generic(
        "Failed to add chardev \(ErrorText.quoted(id)): " + MonitorError.text($0, chardevType.typeName))
    }
  }
}

extension MonitorError {
  init(chardev problem: Chardevs.Problem) {
    self =
      switch problem {
      case .duplicateID(let id): .generic("Chardev with id '\(id)' already exists")
      case .notFound(let name): .generic("Chardev \(ErrorText.quoted(name)) not found")
      case .inUse(let name): .generic("Chardev '\(name)' is busy")
      case .ended: .generic("The machine ends")
      case .notOpened(let id, let error): .generic("Failed to add chardev '\(id)': \(Self.text(error))")
      }
  }

  private static func text(_ error: StartError.SystemError) -> String {
    let reason = ErrorText.reason(of: error)
    return switch error.call {
    case "open": "Could not open '\(error.operand)': \(reason)"
    case "connect": "Failed to connect to '\(error.operand)': \(reason)"
    case "bind": "Failed to bind socket to \(error.operand): \(reason)"
    default: ErrorText.text(for: error)
    }
  }
}

/// An object within a command's arguments. Errors name its members by their whole path (qapi/qobject-input-visitor.c).
struct NestedArguments {
  private var members: JSONObject
  private let prefix: String

  init(_ object: JSONObject, prefix: String = "") {
    members = object
    self.prefix = prefix
  }

  private mutating func take(_ name: String) -> JSONValue? {
    defer { members[name] = nil }
    return members[name]
  }

  private func missing(_ name: String) -> MonitorError { .generic("Parameter '\(prefix + name)' is missing") }

  mutating func string(_ name: String) throws(MonitorError) -> String {
    guard let value = take(name) else { throw missing(name) }
    return try String.read(value, prefix + name)
  }

  mutating func optionalBoolean(_ name: String) throws(MonitorError) -> Bool? {
    guard let value = take(name) else { return nil }
    return try Bool.read(value, prefix + name)
  }

  mutating func optionalInteger(_ name: String) throws(MonitorError) -> Int64? {
    guard let value = take(name) else { return nil }
    return try Int64.read(value, prefix + name)
  }

  mutating func object(_ name: String) throws(MonitorError) -> NestedArguments {
    guard let value = take(name) else { throw missing(name) }
    guard case .object(let object) = value else { throw .invalidType(prefix + name, expected: "object") }
    return NestedArguments(object, prefix: prefix + name + ".")
  }

  /// Refuses members that were not read.
  func end() throws(MonitorError) {
    if let member = members.members.first {
      throw .generic("Parameter \(ErrorText.quoted(prefix + member.name)) is unexpected")
    }
  }
}
