import Machine

/// Recognizes Ctrl-A commands in a terminal's input to the guest's serial port. The commands are those of QEMU's
/// multiplexer (chardev/char-mux.c). A pure state machine: it does no I/O.
public struct TerminalMultiplexer: InputInterpreter {
  /// Ctrl-A.
  public static let escape: UInt8 = 0x01

  private var afterEscape = false
  public var onlyFrontendText: String { "\nnestling: there is no monitor here\n" }

  public init() {}

  public mutating func receive(
    _ bytes: ArraySlice<UInt8>, guestBytes: inout [UInt8]
  ) -> (used: Int, action: InputAction?) {
    for (used, byte) in zip(1..., bytes) {
      guard afterEscape else {
        if byte == Self.escape { afterEscape = true } else { guestBytes.append(byte) }
        continue
      }
      afterEscape = false
      switch byte {
      case Self.escape: guestBytes.append(byte)
      case UInt8(ascii: "x"), UInt8(ascii: "X"): return (used, .exit)
      case UInt8(ascii: "h"), UInt8(ascii: "?"): return (used, .show("\n" + Self.help))
      case UInt8(ascii: "c"): return (used, .switchFocus)
      // Like QEMU, drop a letter without a meaning, and the escape before it.
      default: break
      }
    }
    return (bytes.count, nil)
  }

  static let help = """
    C-a h    print this help
    C-a x    exit emulator
    C-a c    switch between console and monitor
    C-a C-a  send C-a

    """
}
