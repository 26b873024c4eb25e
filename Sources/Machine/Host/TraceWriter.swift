import Glibc
import Linux
import Synchronization
import VTd

/// Writes trace events, one line each: `vtd_dmar_fault sid=00:02.0 fault=0x71 ...`.
///
/// Lock order: code that holds its lock takes no other lock. A unit calls it with its locks held, so it does not wait
/// for a reader: events that do not fit into a pipe are lost, and the next line gives their number.
final class TraceWriter: TraceSink {
  private let file: FileDescriptor
  /// The number of events lost since the last line. The lock also keeps lines whole.
  private let lost = Mutex(0)

  /// - Parameters:
  ///   - path: a file, which is truncated first; nil for standard error.
  ///   - patience: the limit of the wait for a FIFO's reader; nil to throw ENXIO at once.
  init(path: String?, patience: Patience? = nil) throws(SystemError) {
    if let path {
      file = try FileDescriptor(openingOutput: path, O_TRUNC, patience: patience)
    } else {
      file = try FileDescriptor(duplicating: STDERR_FILENO)
    }
  }

  func record(_ event: String, unit: String?, _ arguments: [TraceArgument]) {
    let bytes = Array(Self.line(event, unit: unit, arguments).utf8)
    lost.withLock { lost in
      let note = lost > 0 ? Array("trace_events_lost count=\(lost)\n".utf8) : []
      // A pipe with room takes both lines whole (pipe(7), PIPE_BUF). A full disk or a closed pipe loses only events.
      if Poll.writable(file.rawValue, milliseconds: 0), (try? file.writeSome(note + bytes, from: 0)) != 0 {
        lost = 0
      } else {
        lost += 1
      }
    }
  }

  private static func line(_ event: String, unit: String?, _ arguments: [TraceArgument]) -> String {
    var line = event
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
