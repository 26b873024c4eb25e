import Linux

/// Nestling as a process of its host.
public enum HostProcess {
  /// To be called before anything else: no descriptor of Nestling's own becomes standard input, output or error, and
  /// no signal of a failed write ends it.
  /// - Returns: false where the host has no /dev/null.
  public static func prepare() -> Bool { (try? Process.prepare()) != nil }

  /// From the first call on, the process may go on for two seconds. It ends then by itself, whatever a thread waits for
  /// in a call of the host; the terminal is as it was.
  /// - Parameter status: the exit status; that of the last call counts.
  public static func endSoon(status: Int32) { Process.end(within: 2, status: status) }
}
