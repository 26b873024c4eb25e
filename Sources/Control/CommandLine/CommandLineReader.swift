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
      var argument = ""
      if option.argument != nil {
        guard position < arguments.count else { throw .missingArgument(option: word) }
        argument = arguments[position]
        position += 1
      }
      draft.source = CommandLineDraft.Source(option: word, argument: argument)
      try mapError(try option.action(&draft, argument)) {
        CommandLineError.option(option: word, argument: argument, $0)
      }
      if let printed = draft.printed { return .print(printed) }
    }
    return .run(try draft.finish())
  }
}

/// One option of the command line, as data: its names, its argument, its action.
struct CommandOption: Sendable {
  /// Without the dash. Help shows the first one first.
  let names: [String]
  /// The argument as help shows it; nil for an option that takes none.
  let argument: String?
  let help: [String]
  /// The text is empty for an option that takes no argument.
  let action: @Sendable (inout CommandLineDraft, String) throws(OptionProblem) -> Void

  init(
    _ names: String..., help: String...,
    flag action: @escaping @Sendable (inout CommandLineDraft) throws(OptionProblem) -> Void
  ) {
    self.names = names
    argument = nil
    self.help = help
    self.action = { (draft, _) throws(OptionProblem) in try action(&draft) }
  }

  init(
    _ names: String..., argument: String, help: String...,
    action: @escaping @Sendable (inout CommandLineDraft, String) throws(OptionProblem) -> Void
  ) {
    self.names = names
    self.argument = argument
    self.help = help
    self.action = action
  }

  /// An option that accepts one word, which changes nothing.
  init(_ names: String..., only word: String, of wordKind: OptionProblem.WordKind, help: String...) {
    self.names = names
    argument = word
    self.help = help
    action = { (_, text) throws(OptionProblem) in
      guard text == word else { throw .unknown(wordKind, name: text, known: [word]) }
    }
  }
}
