import Glibc
import Linux

/// Nestling's standard output and standard error.
public enum StandardStreams {
  /// Writes text for a person or a pipe. It is no error if the reader of the pipe is gone.
  public static func writeOutput(_ text: String) { write(text, to: STDOUT_FILENO) }

  public static func writeError(_ text: String) { write(text, to: STDERR_FILENO) }

  private static func write(_ text: String, to descriptor: Int32) {
    guard let file = try? FileDescriptor(duplicating: descriptor) else { return }
    try? file.write(Array(text.utf8))
  }

  /// Appends text to a file.
  public static func append(_ text: String, to path: String) throws(SystemError) {
    let file = try FileDescriptor(openingOutput: path, O_APPEND)
    try file.write(Array(text.utf8))
  }
}
