import JSON

/// One QMP command, as data: its name, its arguments, its answer, what it does.
struct MonitorCommand: Sendable {
  /// What a command comes to.
  enum Outcome {
    case answer(JSONValue)
    /// The answer goes out first, as what is to be done may end the connection.
    case answerThen(JSONValue, @Sendable () -> Void)
  }

  let name: String
  let arguments: [SchemaMember]
  let answer: SchemaType
  let run: @Sendable (JSONObject, any MonitorTarget) throws(MonitorError) -> Outcome

  init<Arguments: CommandArguments>(
    _ name: String, _: Arguments.Type, answers answer: SchemaType = .empty,
    _ body: @escaping @Sendable (Arguments, any MonitorTarget) throws(MonitorError) -> Outcome
  ) {
    self.name = name
    self.answer = answer
    arguments = Arguments.fields.map { SchemaMember($0.name, $0.type, optional: $0.isOptional) }
    run = { (object, target) throws(MonitorError) in try body(try Arguments(object), target) }
  }

  /// A command whose arguments are a device's, an object's or a node's properties: more than the schema names.
  init(
    _ name: String, open members: [SchemaMember],
    _ body: @escaping @Sendable (JSONObject, any MonitorTarget) throws(MonitorError) -> Void
  ) {
    self.name = name
    answer = .empty
    arguments = members
    run = { (object, target) throws(MonitorError) in
      try body(object, target)
      return .answer([:])
    }
  }

  /// A query without arguments.
  init(
    _ name: String, answers answer: SchemaType,
    _ body: @escaping @Sendable (any MonitorTarget) throws(MonitorError) -> JSONValue
  ) {
    self.init(name, NoArguments.self, answers: answer) { (_, target) throws(MonitorError) in
      .answer(try body(target))
    }
  }
}

/// Every command, in the order of their names. A new one is a line here and its entry in the file of its subject.
enum MonitorCommands {
  static let all: [MonitorCommand] =
    (statusCommands + boardCommands + deviceCommands + objectCommands + blockCommands + typeCommands + treeCommands
    + descriptorCommands + chardevCommands + introspectionCommands)
    .sorted { $0.name < $1.name }

  private static let byName: [String: MonitorCommand] = Dictionary(uniqueKeysWithValues: all.map { ($0.name, $0) })

  static func named(_ name: String) -> MonitorCommand? { byName[name] }

  private static let schema = SchemaWriter.schema(of: all, events: MonitorEventName.allCases)

  private static let introspectionCommands: [MonitorCommand] = [
    MonitorCommand(
      "query-commands", answers: .array(.object("CommandInfo", [SchemaMember("name", .string)]))
    ) { (_) throws(MonitorError) in .array(all.map { ["name": .string($0.name)] }) },
    // Its own answer is the schema, whose type would be as long as itself: QEMU's SchemaInfo, short of its variants.
    MonitorCommand(
      "query-qmp-schema",
      answers: .array(.object("SchemaInfo", [SchemaMember("name", .string), SchemaMember("meta-type", .string)]))
    ) { (_) throws(MonitorError) in schema },
    MonitorCommand(
      "human-monitor-command", HumanCommandArguments.self, answers: .string
    ) { (arguments, target) throws(MonitorError) in
      if let index = arguments.processor, index < 0 || index >= Int64(target.configuration.processors.count) {
        throw .generic("Parameter 'cpu-index' expects a CPU number")
      }
      let answer = HumanCommands.run(arguments.line, on: target)
      let text = JSONValue.string(String(decoding: HumanSession.bytes(answer.text), as: UTF8.self))
      guard let action = answer.afterwards else { return .answer(text) }
      return .answerThen(text, action)
    },
    /// Negotiation is the session's; who comes here has it behind him.
    MonitorCommand("qmp_capabilities", CapabilityArguments.self) { (_, _) throws(MonitorError) in
      throw .commandNotFound("Capabilities negotiation is already complete, command ignored")
    },
  ]
}

struct HumanCommandArguments: CommandArguments {
  var line = ""
  var processor: Int64?

  static let fields: [ArgumentField<Self>] = [
    ArgumentField("command-line", \.line), ArgumentField("cpu-index", \.processor),
  ]
}

struct CapabilityArguments: CommandArguments {
  var enabled: [String] = []

  static let fields: [ArgumentField<Self>] = [
    ArgumentField("enable", \.enabled, of: .enumeration("QMPCapability", ["oob"]))
  ]
}
