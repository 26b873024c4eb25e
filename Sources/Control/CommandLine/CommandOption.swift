import Machine

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
  init(_ names: String..., only word: String, of kind: OptionProblem.WordKind, help: String...) {
    self.names = names
    argument = word
    self.help = help
    action = .argument { (_, text) throws(OptionProblem) in
      guard text == word else { throw .unknown(kind, name: text, known: [word]) }
      return nil
    }
  }
}
