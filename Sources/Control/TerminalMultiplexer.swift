/// The Ctrl-A commands between a terminal and the guest's serial port, as QEMU's multiplexer has them
/// (chardev/char-mux.c): a state machine, which neither reads nor writes anything.
public struct TerminalMultiplexer: Sendable {
  /// What is to be done beside passing bytes on.
  public enum Action: Hashable, Sendable {
    /// End Nestling.
    case exit
    /// Text for the terminal, not the guest.
    case show(String)
  }

  /// Ctrl-A.
  public static let escape: UInt8 = 0x01

  private var afterEscape = false

  public init() {}

  /// Takes what the terminal sent.
  /// - Parameters:
  ///   - bytes: what is typed after an `exit` is dropped.
  ///   - guestBytes: what is for the guest is appended there.
  /// - Returns: the actions, in order.
  public mutating func receive(_ bytes: some Sequence<UInt8>, guestBytes: inout [UInt8]) -> [Action] {
    var actions: [Action] = []
    for byte in bytes {
      guard afterEscape else {
        if byte == Self.escape { afterEscape = true } else { guestBytes.append(byte) }
        continue
      }
      afterEscape = false
      switch byte {
      case Self.escape: guestBytes.append(byte)
      case UInt8(ascii: "x"), UInt8(ascii: "X"): return actions + [.exit]
      case UInt8(ascii: "h"), UInt8(ascii: "?"): actions.append(.show("\n" + Self.help))
      case UInt8(ascii: "c"): actions.append(.show("\nnestling: there is no monitor yet\n"))
      // As QEMU does: a letter without a meaning is dropped, with the escape.
      default: break
      }
    }
    return actions
  }

  static let help = """
    C-a h    print this help
    C-a x    exit emulator
    C-a c    switch to the monitor (there is none yet)
    C-a C-a  send C-a

    """
}
