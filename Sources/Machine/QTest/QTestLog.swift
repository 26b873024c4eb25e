import Glibc
import Linux
import Synchronization

/// Every command and answer with its time, as QEMU writes them down: `[R +0.000123] inb 0x70`.
///
/// A thread writes them, as a device's lock may be held where a line comes from, or the machine's thread may wait. While
/// the log's reader is behind, the client's next command waits: nothing is lost.
final class QTestLog: Sendable {
  private let output: ChardevOutputBuffer
  /// Where the latest line ends, for `ChardevOutputBuffer.isBehind`.
  private let end = Mutex<UInt64>(0)

  /// - Parameter patience: how long to wait for the reader of a FIFO; nil to throw ENXIO at once.
  /// - Returns: nil for no log.
  init?(_ log: QTestOptions.Log, patience: Patience? = nil) throws(SystemError) {
    let file: FileDescriptor
    switch log {
    case .none: return nil
    case .standardError: file = try FileDescriptor(duplicating: STDERR_FILENO)
    case .file(let path): file = try FileDescriptor(openingOutput: path, O_TRUNC, patience: patience)
    }
    output = try ChardevOutputBuffer(to: ChardevOutputBuffer.Target(file))
  }

  /// Writes what is left, as far as the reader takes it soon.
  deinit { output.stop() }

  /// Sets what to call when a command that was refused would be taken. It is called from here, too.
  func onRoom(_ handler: @escaping @Sendable () -> Void) { output.onRoom(handler) }

  /// Writes a command, unless the reader is behind.
  func writeCommand(at time: UInt64, _ text: [UInt8]) -> Bool {
    if output.isBehind(end.withLock { $0 }) { return false }
    write("R", at: time, text)
    return true
  }

  /// - Parameters:
  ///   - mark: R for what was received, S for what is sent, I for what happened.
  ///   - time: since the client connected, in nanoseconds.
  ///   - text: with its newline.
  func write(_ mark: Character, at time: UInt64, _ text: [UInt8]) {
    let microseconds = String(time / 1000 % 1_000_000)
    let fraction = String(repeating: "0", count: 6 - microseconds.utf8.count) + microseconds
    let line = Array("[\(mark) +\(time / 1_000_000_000).\(fraction)] ".utf8) + text
    end.withLock { $0 = output.send(line) }
  }
}
