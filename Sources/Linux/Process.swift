import CLinux
import Glibc

/// The start and the end of this process.
public enum Process {
  /// The process that started this one: getppid(2) at the first use, which is in `prepare`.
  public static let parent: Int32 = getppid()

  /// Prepares the process: opens /dev/null as each of standard input, output and error that is closed, and ignores the
  /// signals of failed writes. Must be the first call in `main`.
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

  /// Makes a write fail with an error instead of ending the process, when its socket or pipe is closed (SIGPIPE) or the
  /// file would exceed the size limit (SIGXFSZ, setrlimit(2)).
  public static func ignoreSignalsOfWrites() {
    signal(SIGPIPE, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
  }

  /// Ends the process after a time, even if its threads are blocked, and restores the terminal first.
  /// - Parameters:
  ///   - seconds: counted from the first call. A second call changes only the status.
  ///   - status: the exit status.
  public static func end(within seconds: UInt32, status: Int32) { nestling_end_within(seconds, status) }
}
