import Machine

/// What a person types, and what a person is told.
public enum Control {
  /// What a command line comes to.
  public enum Outcome: Sendable {
    case run(MachineConfiguration)
    /// Text for standard output, with its last newline; then status 0.
    case print(String)
    /// One line for standard error, with its newline; then status 1.
    case fail(String)
  }

  /// Reads a command line. Opens nothing.
  /// - Parameter arguments: without the program's own name.
  public static func parse(_ arguments: [String]) -> Outcome {
    do {
      return try CommandLineReader.read(arguments)
    } catch {
      return .fail(ErrorText.line(for: error))
    }
  }
}
