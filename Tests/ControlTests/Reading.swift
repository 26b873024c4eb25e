import Control
import Machine
import Testing

/// Returns the configuration of a command line.
func configuration(
  _ words: String..., sourceLocation: SourceLocation = #_sourceLocation
) throws -> MachineConfiguration {
  try configuration(words, sourceLocation: sourceLocation)
}

func configuration(
  _ words: [String], sourceLocation: SourceLocation = #_sourceLocation
) throws -> MachineConfiguration {
  switch Control.parse(words) {
  case .run(let configuration): return configuration
  case .print(let text), .fail(let text):
    Issue.record("\(text)", sourceLocation: sourceLocation)
    throw NoConfiguration()
  }
}

struct NoConfiguration: Error {}

/// Returns the error line of a command line without its newline, or nil if there is none.
func failure(_ words: [String]) -> String? {
  guard case .fail(let text) = Control.parse(words), text.last == "\n" else { return nil }
  return String(text.dropLast())
}

/// Returns what a command line prints instead of running, or nil if it prints nothing.
func printed(_ words: String...) -> String? {
  guard case .print(let text) = Control.parse(words) else { return nil }
  return text
}
