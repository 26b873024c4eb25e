import Glibc
import Linux
import Synchronization
import VTd

/// Writes trace events, a line each: `vtd_dmar_fault sid=00:02.0 fault=0x71 ...`.
///
/// Lock order: its lock is a leaf. It is called with a unit's locks held, so a reader of a pipe that does not read
/// stops the guest.
final class TraceWriter: TraceSink {
  private let file: FileDescriptor
  /// Keeps lines whole.
  private let lock = Mutex(())

  /// - Parameter path: of a file, which is emptied first; nil for standard error.
  init(path: String?) throws(SystemError) {
    if let path {
      file = try FileDescriptor(opening: path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode: 0o666)
    } else {
      file = try FileDescriptor(duplicating: STDERR_FILENO)
    }
  }

  func record(_ event: TraceEvent, unit: String?, _ arguments: [TraceArgument]) {
    let bytes = Array(TraceLine.text(event, unit: unit, arguments).utf8)
    // A full disk or a closed pipe loses events, nothing else.
    lock.withLock { _ in try? file.write(bytes) }
  }
}

/// An event as text.
enum TraceLine {
  static func text(_ event: TraceEvent, unit: String?, _ arguments: [TraceArgument]) -> String {
    var line = event.name
    if let unit { line += " unit=" + unit }
    for argument in arguments { line += " " + argument.name + "=" + text(argument.value) }
    return line + "\n"
  }

  private static func text(_ value: TraceArgument.Value) -> String {
    switch value {
    case .hexadecimal(let value): "0x" + String(value, radix: 16)
    case .decimal(let value): String(value)
    case .flag(let value): value ? "1" : "0"
    case .source(let source): source.description
    case .word(let word): word
    }
  }
}
