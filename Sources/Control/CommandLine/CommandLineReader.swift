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
