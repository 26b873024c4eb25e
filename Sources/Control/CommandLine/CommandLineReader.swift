import Machine

/// Parses the arguments by the table of options.
enum CommandLineReader {
  static func read(_ arguments: [String]) throws(CommandLineError) -> Control.Outcome {
    var draft = CommandLineDraft()
    var position = 0
    while position < arguments.count {
      let word = arguments[position]
      position += 1
      guard word.hasPrefix("-"), word != "-" else { throw .bareWord(word) }
      // Two dashes mean the same as one.
      let name = String(word.dropFirst(word.hasPrefix("--") ? 2 : 1))
      guard let option = CommandOptions.named(name) else { throw .unknownOption(word) }
      let printed: String?
      switch option.action {
      case .flag(let action):
        draft.source = CommandLineDraft.Source(option: word, argument: "")
        printed = try blaming(draft.source) { () throws(OptionProblem) in try action(&draft) }
      case .argument(let action):
        guard position < arguments.count else { throw .missingArgument(option: word) }
        let argument = arguments[position]
        position += 1
        draft.source = CommandLineDraft.Source(option: word, argument: argument)
        printed = try blaming(draft.source) { () throws(OptionProblem) in try action(&draft, argument) }
      }
      if let printed { return .print(printed) }
    }
    return .run(try draft.finish())
  }

  private static func blaming<Result>(
    _ source: CommandLineDraft.Source, _ body: () throws(OptionProblem) -> Result
  ) throws(CommandLineError) -> Result {
    do {
      return try body()
    } catch {
      throw .option(option: source.option, argument: source.argument, error)
    }
  }
}

/// One option of the command line, as data: its names, its argument, its action.
struct CommandOption: Sendable {
  /// Without the dash. Help shows the first one first.
  let names: [String]
  /// The argument as help shows it; nil for an option that takes none.
  let argument: String?
  let help: [String]
  let action: Action

  /// An action returns a text to print instead of running a machine, or nil to continue.
  enum Action: Sendable {
    case flag(@Sendable (inout CommandLineDraft) throws(OptionProblem) -> String?)
    case argument(@Sendable (inout CommandLineDraft, String) throws(OptionProblem) -> String?)
  }

  init(
    _ names: String..., help: String...,
    flag action: @escaping @Sendable (inout CommandLineDraft) throws(OptionProblem) -> String?
  ) {
    self.names = names
    argument = nil
    self.help = help
    self.action = .flag(action)
  }

  init(
    _ names: String..., argument: String, help: String...,
    action: @escaping @Sendable (inout CommandLineDraft, String) throws(OptionProblem) -> String?
  ) {
    self.names = names
    self.argument = argument
    self.help = help
    self.action = .argument(action)
  }

  /// An option that accepts one word, which changes nothing.
  init(_ names: String..., only word: String, of wordKind: OptionProblem.WordKind, help: String...) {
    self.names = names
    argument = word
    self.help = help
    action = .argument { (_, text) throws(OptionProblem) in
      guard text == word else { throw .unknown(wordKind, name: text, known: [word]) }
      return nil
    }
  }
}
