import CLinux
import Glibc

/// The signals that ask the process to end, read from a descriptor instead of handled.
public struct TerminationSignals: ~Copyable, Sendable {
  private let file: FileDescriptor

  /// Blocks SIGINT, SIGTERM and SIGHUP for this thread and those it starts. Must be called before any thread is
  /// started. From now on, a failed write is an error instead of a signal.
  public init() throws(SystemError) {
    Process.ignoreSignalsOfWrites()
    file = FileDescriptor(owning: try checked(nestling_termination_signals(), "signalfd"))
  }

  /// Asks the kernel to send SIGTERM when the process that started this one ends.
  /// - Parameter parent: the id of that process.
  /// - Throws: ESRCH if that process has ended already.
  public func includeEndOfParent(_ parent: Int32) throws(SystemError) {
    let answer = nestling_end_with_parent(parent)
    if answer == -ESRCH { throw SystemError("prctl", code: ESRCH, cause: .parentEnded) }
    _ = try checked(answer, "prctl")
  }

  public var rawValue: Int32 { file.rawValue }

  /// Returns the number of a pending signal, or nil.
  public func take() -> Int32? {
    let number = nestling_take_signal(file.rawValue)
    return number > 0 ? number : nil
  }
}
