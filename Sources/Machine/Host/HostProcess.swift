import Glibc
import Linux
import Synchronization

/// Nestling as a process of its host.
public enum HostProcess {
  /// Prepares the process. Must be called before anything else. Prevents files that Nestling opens from becoming
  /// standard input, output or error, and ignores the signals of failed writes.
  /// - Returns: false if the host has no /dev/null.
  public static func prepare() -> Bool { (try? Process.prepare()) != nil }

  /// Restores the terminal and ends the process two seconds after the first call, even if threads are blocked in system
  /// calls. Has no effect if the process ends earlier.
  /// - Parameter status: the exit status; that of the last call counts.
  public static func endSoon(status: Int32) { Process.end(within: 2, status: status) }
}

/// Nestling's standard output and standard error.
public enum StandardStreams {
  /// Writes text to a terminal, a file or a pipe. It is no error if the reader of the pipe is gone.
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

/// Lines on standard error about a running machine. The caller never waits: a thread writes them, and a line is lost if
/// the reader is 1 MiB behind.
public final class NoticeStream: Sendable {
  /// Created for the first line, because most machines write no line.
  private let output = Mutex<ChardevOutputBuffer?>(nil)

  public init() {}

  /// - Parameter text: a line with its newline.
  public func write(_ text: String) {
    let output = output.withLock { output in
      if output == nil, let file = try? FileDescriptor(duplicating: STDERR_FILENO) {
        output = try? ChardevOutputBuffer(to: ChardevOutputBuffer.Target(file))
      }
      return output
    }
    _ = output?.write(Array(text.utf8))
  }

  /// Writes the remaining lines, within a second. Later lines are lost.
  public func finish() {
    output.withLock { $0 }?.stop()
  }
}
