import Glibc
import Linux
import Synchronization

/// The log of all commands and answers with their times, in QEMU's format: `[R +0.000123] inb 0x70`.
///
/// A separate thread writes the lines, so that a call does not block. The caller may hold a device's lock, or the
/// machine's thread may wait for the caller. If the log's reader is behind, the client's next command waits. Nothing is
/// lost.
final class QTestLog: Sendable {
  private let output: ChardevOutputBuffer
  /// The end of the latest line, for `ChardevOutputBuffer.isBehind`.
  private let end = Mutex<UInt64>(0)

  /// - Parameter patience: the limit of the wait for a FIFO's reader; nil to throw ENXIO at once.
  /// - Returns: nil if the option is for no log.
  init?(_ log: QTestOptions.Log, patience: Patience? = nil) throws(SystemError) {
    let file: FileDescriptor
    switch log {
    case .none: return nil
    case .standardError: file = try FileDescriptor(duplicating: STDERR_FILENO)
    case .file(let path): file = try FileDescriptor(openingOutput: path, O_TRUNC, patience: patience)
    }
    output = try ChardevOutputBuffer(to: ChardevOutputBuffer.Target(file))
  }

  /// Writes the lines that are left, if the reader accepts them soon.
  deinit { output.stop() }

  /// - Parameter handler: called when `writeCommand` would accept a command that it refused before. This method calls
  ///   it, too.
  func onRoom(_ handler: @escaping @Sendable () -> Void) { output.onRoom(handler) }

  /// Writes a command, unless the reader is behind.
  /// - Returns: false if nothing was written because the reader is behind.
  func writeCommand(at time: UInt64, _ text: [UInt8]) -> Bool {
    if output.isBehind(end.withLock { $0 }) { return false }
    write("R", at: time, text)
    return true
  }

  /// - Parameters:
  ///   - mark: R for received, S for sent, I for information.
  ///   - time: in nanoseconds since the client connected.
  ///   - text: the line with its newline.
  func write(_ mark: Character, at time: UInt64, _ text: [UInt8]) {
    let microseconds = String(time / 1000 % 1_000_000)
    let fraction = String(repeating: "0", count: 6 - microseconds.utf8.count) + microseconds
    let line = Array("[\(mark) +\(time / 1_000_000_000).\(fraction)] ".utf8) + text
    end.withLock { $0 = output.send(line) }
  }
}
