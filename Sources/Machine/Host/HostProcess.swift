import Linux

/// Nestling as a process of its host.
public enum HostProcess {
  /// Must be called before anything else: keeps files that Nestling opens from becoming standard input, output or
  /// error, and ignores the signals of failed writes.
  /// - Returns: false where the host has no /dev/null.
  public static func prepare() -> Bool { (try? Process.prepare()) != nil }

  /// Ends the process two seconds after the first call, whatever system call a thread waits in, and restores the
  /// terminal first. Does nothing to a process that ends earlier.
  /// - Parameter status: the exit status; the last call's counts.
  public static func endSoon(status: Int32) { Process.end(within: 2, status: status) }
}
