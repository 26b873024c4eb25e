import CLinux
import Glibc
import Synchronization

/// The terminal on standard input: raw while a guest has it, as it was afterwards.
public enum Terminal {
  private struct Saved: @unchecked Sendable {
    var mode: termios?
    var flags: Int32?
  }

  private static let saved = Mutex(Saved())

  public static var isTerminal: Bool { isatty(STDIN_FILENO) == 1 }

  /// Every key goes to the guest as it is typed, Ctrl-C included. Without a terminal nothing happens.
  public static func makeRaw() {
    guard isTerminal else { return }
    saved.withLock { saved in
      var mode = termios()
      // SAFETY: the structure outlives the calls.
      guard unsafe tcgetattr(STDIN_FILENO, &mode) == 0 else { return }
      if saved.mode == nil {
        saved.mode = mode
        _ = nestling_restore_terminal_in_a_crash()
      }
      mode.c_iflag &= ~tcflag_t(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON)
      mode.c_oflag |= tcflag_t(OPOST)
      mode.c_lflag &= ~tcflag_t(ECHO | ECHONL | ICANON | IEXTEN | ISIG)
      mode.c_cflag &= ~tcflag_t(CSIZE | PARENB)
      mode.c_cflag |= tcflag_t(CS8)
      unsafe tcsetattr(STDIN_FILENO, TCSANOW, &mode)
    }
  }

  /// Back to what it was before `makeRaw`. May be called any number of times.
  public static func restore() {
    saved.withLock { saved in
      guard var mode = saved.mode else { return }
      // SAFETY: the structure outlives the call.
      unsafe tcsetattr(STDIN_FILENO, TCSADRAIN, &mode)
      saved.mode = nil
    }
  }
}
