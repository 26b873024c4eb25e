import CLinux
import Glibc

/// This process, as its host starts and ends it.
public enum Process {
  /// The process that started this one, as read the first time; `prepare` reads it.
  public static let parent: Int32 = getppid()

  /// Must be the first call in `main`. Opens /dev/null as standard input, output or error where that is closed, and
  /// ignores the signals of failed writes.
  public static func prepare() throws(SystemError) {
    _ = parent
    _ = try checked(nestling_hold_standard_descriptors(), "open", "/dev/null")
    ignoreSignalsOfWrites()
    // `end` needs this signal, and the parent may have blocked it.
    var set = sigset_t()
    // SAFETY: the set outlives the calls.
    unsafe sigemptyset(&set)
    unsafe sigaddset(&set, SIGALRM)
    unsafe pthread_sigmask(SIG_UNBLOCK, &set, nil)
  }

  /// From now on a write to a closed socket or pipe (SIGPIPE), or beyond the limit of a file's size (SIGXFSZ,
  /// setrlimit(2)), fails with an error and does not end the process.
  public static func ignoreSignalsOfWrites() {
    signal(SIGPIPE, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
  }

  /// Ends the process after a time, whatever its threads wait for, and restores the terminal first.
  /// - Parameters:
  ///   - seconds: from the first call on. A second call changes only the status.
  ///   - status: the exit status.
  public static func end(within seconds: UInt32, status: Int32) { nestling_end_within(seconds, status) }
}
