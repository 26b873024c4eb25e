import JSON

/// One QMP command, as data: its name, its arguments, its answer, its action.
struct MonitorCommand: Sendable {
  /// The result of a command.
  enum Outcome {
    case answer(JSONValue)
    /// An answer, and an action to run after the answer has been sent, because the action may end the connection.
    case answerThen(JSONValue, @Sendable () -> Void)
  }

  let name: String
  let arguments: SchemaMembers
  let answer: SchemaType
  let run: @Sendable (JSONObject, any MonitorTarget) throws(MonitorError) -> Outcome

  /// A command whose answer has content.
  init<Arguments: CommandArguments>(
    _ name: String, _: Arguments.Type, answers answer: SchemaType,
    _ body: @escaping @Sendable (Arguments, any MonitorTarget) throws(MonitorError) -> Outcome
  ) {
    self.name = name
    self.answer = answer
    arguments = SchemaMembers(
      Arguments.fields.map { .init(name: $0.name, type: $0.type, isOptional: $0.isOptional) })
    run = { (object, target) throws(MonitorError) in try body(try Arguments(object), target) }
  }

  /// A command with an empty answer.
  init<Arguments: CommandArguments>(
    _ name: String, _: Arguments.Type,
    _ body: @escaping @Sendable (Arguments, any MonitorTarget) throws(MonitorError) -> Void
  ) {
    self.init(name, Arguments.self, answers: .empty) { (arguments, target) throws(MonitorError) in
      try body(arguments, target)
      return .answer([:])
    }
  }

  /// A command with one argument, a string.
  init(
    _ name: String, argument: String, answers answer: SchemaType,
    _ body: @escaping @Sendable (String, any MonitorTarget) throws(MonitorError) -> JSONValue
  ) {
    self.name = name
    self.answer = answer
    arguments = [argument: .string]
    run = { (object, target) throws(MonitorError) in
      var text = ""
      try ArgumentField.read([ArgumentField(argument, \.self)], from: object, into: &text)
      return .answer(try body(text, target))
    }
  }

  /// A command with one argument, a string, and an empty answer.
  init(
    _ name: String, argument: String,
    _ body: @escaping @Sendable (String, any MonitorTarget) throws(MonitorError) -> Void
  ) {
    self.init(name, argument: argument, answers: .empty) { (text, target) throws(MonitorError) in
      try body(text, target)
      return [:]
    }
  }

  /// A command whose arguments are the properties of a device, an object or a node, of which the schema lists only
  /// some.
  init(
    _ name: String, open members: SchemaMembers,
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

  /// A command without arguments that acts after its empty answer.
  init(_ name: String, afterwards: @escaping @Sendable (any MonitorTarget) -> Void) {
    self.init(name, NoArguments.self, answers: .empty) { (_, target) in .answerThen([:]) { afterwards(target) } }
  }
}

/// All commands, sorted by name. Each file of commands contributes a list.
enum MonitorCommands {
  static let all: [MonitorCommand] =
    (statusCommands + boardCommands + deviceCommands + objectCommands + blockCommands + netdevCommands + typeCommands
    + treeCommands + descriptorCommands + chardevCommands + introspectionCommands)
    .sorted { $0.name < $1.name }

  private static let byName: [String: MonitorCommand] = Dictionary(uniqueKeysWithValues: all.map { ($0.name, $0) })

  static func named(_ name: String) -> MonitorCommand? { byName[name] }

  private static let schema = SchemaWriter.schema(of: all, events: MonitorEventName.allCases)

  private static let introspectionCommands: [MonitorCommand] = [
    MonitorCommand("query-commands", answers: .list("CommandInfo", ["name": .string])) { _ in
      .array(all.map { ["name": .string($0.name)] })
    },
    // The answer's type is QEMU's SchemaInfo without its variants, which would be as long as the schema.
    MonitorCommand("query-qmp-schema", answers: .list("SchemaInfo", ["name": .string, "meta-type": .string])) { _ in
      schema
    },
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
    // QMPSession handles the first `qmp_capabilities`, so this one is a repetition.
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
    ArgumentField("enable", \.enabled, listOf: "QMPCapability", ["oob"])
  ]
}
