import CLinux
import Glibc
import Synchronization

/// The terminal on standard input: raw while a guest has it, as it was afterwards, or after a crash.
public enum Terminal {
  private static let isRaw = Mutex(false)

  public static var isTerminal: Bool { isatty(STDIN_FILENO) == 1 }

  /// Every key goes to the guest as it is typed, Ctrl-C included. Without a terminal nothing happens.
  public static func makeRaw() {
    isRaw.withLock { isRaw in
      if !isRaw, isTerminal { isRaw = nestling_make_terminal_raw() == 0 }
    }
  }

  /// Back to what it was before `makeRaw`. May be called any number of times.
  public static func restore() {
    isRaw.withLock { isRaw in
      if isRaw { nestling_restore_terminal() }
      isRaw = false
    }
  }
}
