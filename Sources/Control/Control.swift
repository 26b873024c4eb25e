import Machine

/// The command line, the monitors (QMP and HMP), and every text that Nestling prints for people.
public enum Control {
  /// The result of parsing a command line.
  public enum Outcome: Sendable {
    case run(MachineConfiguration)
    /// Print this text, which ends in a newline, on standard output and exit with status 0.
    case print(String)
    /// Print this line, which ends in a newline, on standard error and exit with status 1.
    case fail(String)
  }

  /// Parses a command line. Opens no file.
  /// - Parameter arguments: The words after the program's name.
  public static func parse(_ arguments: [String]) -> Outcome {
    do {
      return try CommandLineReader.read(arguments)
    } catch {
      return .fail(ErrorText.line(for: error))
    }
  }
}
