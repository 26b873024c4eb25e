import Glibc
import Linux
import Synchronization

/// Lines on standard error about a machine that runs. The caller never waits: a thread writes them, and those that find
/// no room behind a reader that does not read are lost.
public final class NoticeStream: Sendable {
  /// Made with the first line; most machines have none.
  private let output = Mutex<CharacterOutputBuffer?>(nil)

  public init() {}

  /// - Parameter text: with its newline.
  public func write(_ text: String) {
    let output = output.withLock { output in
      if output == nil, let file = try? FileDescriptor(duplicating: STDERR_FILENO) {
        output = try? CharacterOutputBuffer(to: CharacterOutputBuffer.Target(file))
      }
      return output
    }
    _ = output?.write(Array(text.utf8))
  }

  /// Writes what is left, as far as that is possible soon. What comes later is lost.
  public func finish() {
    output.withLock { $0 }?.stop()
  }
}
