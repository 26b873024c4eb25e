import CLinux
import Glibc
import Synchronization

/// The terminal on standard input: raw while a guest uses it, restored afterwards and after a crash.
public enum Terminal {
  private static let isRaw = Mutex(false)

  public static var isTerminal: Bool { isatty(STDIN_FILENO) == 1 }

  /// Makes each key reach the guest as it is typed, Ctrl-C included. Does nothing without a terminal.
  public static func makeRaw() {
    isRaw.withLock { isRaw in
      if !isRaw, isTerminal { isRaw = nestling_make_terminal_raw() == 0 }
    }
  }

  /// Restores the mode from before `makeRaw`. May be called any number of times.
  public static func restore() {
    isRaw.withLock { isRaw in
      if isRaw { nestling_restore_terminal() }
      isRaw = false
    }
  }
}
