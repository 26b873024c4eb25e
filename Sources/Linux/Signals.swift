import CLinux
import Glibc

/// Signals that ask the process to end, taken by a descriptor and not by a handler.
public struct TerminationSignals: ~Copyable, Sendable {
  private let file: FileDescriptor

  /// Blocks SIGINT, SIGTERM and SIGHUP for this thread and those it starts; to be called before any is started.
  /// From then on a failed write is an error and no signal.
  public init() throws(SystemError) {
    Process.ignoreSignalsOfWrites()
    file = FileDescriptor(owning: try checked(nestling_termination_signals(), "signalfd"))
  }

  /// Has one of them come when the process that started this one ends, from now on.
  /// - Parameter parent: that process.
  /// - Throws: ESRCH if it has ended already.
  public func includeEndOfParent(_ parent: Int32) throws(SystemError) {
    let answer = nestling_end_with_parent(parent)
    if answer == -ESRCH {
      throw SystemError("prctl", code: ESRCH, because: "the process that started this one has ended already")
    }
    _ = try checked(answer, "prctl")
  }

  public var rawValue: Int32 { file.rawValue }

  /// The number of a signal that came, or nil.
  public func take() -> Int32? {
    let number = nestling_take_signal(file.rawValue)
    return number > 0 ? number : nil
  }
}
