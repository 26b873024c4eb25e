import Glibc
import Linux
import Synchronization

/// Lines on standard error about a running machine. The caller never waits: a thread writes them, and a line is lost if
/// the reader is 1 MiB behind.
public final class NoticeStream: Sendable {
  /// Created for the first line: most machines write none.
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
