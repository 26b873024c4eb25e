import Linux

/// Nestling as a process of its host.
public enum HostProcess {
  /// Prepares the process. Must be called before anything else: it prevents that a file that Nestling opens becomes
  /// standard input, output or error, and ignores the signals of failed writes.
  /// - Returns: false if the host has no /dev/null.
  public static func prepare() -> Bool { (try? Process.prepare()) != nil }

  /// Ends the process two seconds after the first call, whatever system call a thread waits in, and restores the
  /// terminal first. Has no effect if the process ends earlier.
  /// - Parameter status: the exit status; that of the last call counts.
  public static func endSoon(status: Int32) { Process.end(within: 2, status: status) }
}
