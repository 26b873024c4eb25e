import CLinux
import Glibc

/// Signals that ask the process to end, taken by a descriptor and not by a handler.
public struct TerminationSignals: ~Copyable, Sendable {
  private let file: FileDescriptor

  /// Blocks SIGINT, SIGTERM and SIGHUP for this thread and those it starts; to be called before any is started.
  /// A write to a closed socket or pipe is an error and no signal from then on.
  public init() throws(SystemError) {
    signal(SIGPIPE, SIG_IGN)
    file = FileDescriptor(owning: try checked(nestling_termination_signals(), "signalfd"))
  }

  /// Has one of them come when the process that started this one ends, from now on.
  public func includeEndOfParent() throws(SystemError) {
    _ = try checked(nestling_end_with_parent(), "prctl")
  }

  public var rawValue: Int32 { file.rawValue }

  /// The number of a signal that came, or nil.
  public func take() -> Int32? {
    let number = nestling_take_signal(file.rawValue)
    return number > 0 ? number : nil
  }
}
