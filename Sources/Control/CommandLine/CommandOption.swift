import Machine

/// One option of the command line, as data: its names, what follows it, what it does.
struct CommandOption: Sendable {
  /// Without the dash; the first is the one that help leads with.
  let names: [String]
  /// As help shows it; nil for an option that takes none.
  let argument: String?
  let help: [String]
  let action: Action

  /// An action returns what is to be printed instead of running a machine; nil to go on.
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

  /// An option whose only accepted word says what is so anyway.
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
