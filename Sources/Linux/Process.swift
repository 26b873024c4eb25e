import CLinux
import Glibc

/// This process, as its host starts and ends it.
public enum Process {
  /// The process that started this one, as it was at the first look: `prepare` takes it.
  public static let parent: Int32 = getppid()

  /// Comes before anything else in `main`: makes the descriptors 0, 1 and 2 standard input, output and error for good,
  /// and has `ignoreSignalsOfWrites` done.
  public static func prepare() throws(SystemError) {
    _ = parent
    _ = try checked(nestling_hold_standard_descriptors(), "open", "/dev/null")
    ignoreSignalsOfWrites()
    // Who started this process may have blocked the signal that `end` needs.
    var set = sigset_t()
    // SAFETY: the set outlives the calls.
    unsafe sigemptyset(&set)
    unsafe sigaddset(&set, SIGALRM)
    unsafe pthread_sigmask(SIG_UNBLOCK, &set, nil)
  }

  /// A write to a closed socket or pipe (SIGPIPE), or beyond the limit of a file's size (SIGXFSZ, setrlimit(2)), is an
  /// error of that write from now on, and does not end the process.
  public static func ignoreSignalsOfWrites() {
    signal(SIGPIPE, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
  }

  /// Ends the process by itself, if it has not ended before: whatever its threads wait for, the terminal restored.
  /// - Parameters:
  ///   - seconds: from the first call on; another one changes the status alone.
  ///   - status: the exit status.
  public static func end(within seconds: UInt32, status: Int32) { nestling_end_within(seconds, status) }
}
