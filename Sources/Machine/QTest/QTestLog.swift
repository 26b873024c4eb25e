import Glibc
import Linux

/// Every command and answer with its time, as QEMU writes them down: `[R +0.000123] inb 0x70`.
final class QTestLog: Sendable {
  private let file: FileDescriptor

  /// - Parameter patience: how long to wait for the reader of a FIFO; nil to throw ENXIO at once.
  /// - Returns: nil for no log.
  init?(_ log: QTestOptions.Log, patience: Patience? = nil) throws(SystemError) {
    switch log {
    case .none: return nil
    case .standardError: file = try FileDescriptor(duplicating: STDERR_FILENO)
    case .file(let path): file = try FileDescriptor(openingOutput: path, O_TRUNC, patience: patience)
    }
  }

  /// - Parameters:
  ///   - mark: R for what was received, S for what is sent, I for what happened.
  ///   - time: since the client connected, in nanoseconds.
  ///   - text: with its newline.
  func write(_ mark: Character, at time: UInt64, _ text: [UInt8]) {
    let microseconds = String(time / 1000 % 1_000_000)
    let fraction = String(repeating: "0", count: 6 - microseconds.utf8.count) + microseconds
    // A log that cannot be written is no reason to stop.
    try? file.write(Array("[\(mark) +\(time / 1_000_000_000).\(fraction)] ".utf8) + text)
  }
}
