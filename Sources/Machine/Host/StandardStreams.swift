import Glibc
import Linux

/// Where Nestling's own words go.
public enum StandardStreams {
  /// Text for a person or a pipe. Nobody may be reading any more; that is no error.
  public static func writeOutput(_ text: String) { write(text, to: STDOUT_FILENO) }

  public static func writeError(_ text: String) { write(text, to: STDERR_FILENO) }

  private static func write(_ text: String, to descriptor: Int32) {
    guard let file = try? FileDescriptor(duplicating: descriptor) else { return }
    try? file.write(Array(text.utf8))
  }

  /// Adds text to a file.
  public static func append(_ text: String, to path: String) throws(SystemError) {
    let file = try FileDescriptor(openingOutput: path, O_APPEND)
    try file.write(Array(text.utf8))
  }
}
