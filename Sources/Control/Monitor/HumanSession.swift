/// One client's session with the human monitor (HMP): bytes in, bytes out. The prompt is QEMU's `(qemu) `, because
/// scripts that drive a monitor wait for this text.
package struct HumanSession {
  static let prompt = "(qemu) "
  /// The most bytes in a line. A longer line is refused.
  static let lineLimit = 4096

  private let echoes: Bool
  private var line: [UInt8] = []
  private var isTooLong = false
  private var afterReturn = false

  /// - Parameter echoes: Whether to echo input. A terminal in raw mode does not echo it.
  package init(echoes: Bool) { self.echoes = echoes }

  /// The first output of a session.
  var greeting: [UInt8] {
    Self.bytes("Nestling \(HelpText.versionNumber) monitor - type 'help' for more information\n" + Self.prompt)
  }

  /// - Parameter act: Returns false when the client is slow to read, so further lines must wait.
  /// - Returns: The number of bytes that were used. The caller passes the rest again later.
  @discardableResult
  package mutating func receive(
    _ bytes: some Sequence<UInt8>, on target: any MonitorTarget, _ act: (QMPSession.Output) -> Bool
  ) -> Int {
    var echo: [UInt8] = []
    var used = 0
    for byte in bytes {
      used += 1
      // A carriage return and a newline end one line.
      let wasReturn = afterReturn
      afterReturn = byte == 0x0d
      switch byte {
      case 0x0a where wasReturn: break
      case 0x0a, 0x0d:
        if echoes { echo += [0x0d, 0x0a] }
        if !echo.isEmpty { _ = act(.send(echo)) }
        echo = []
        guard carryOut(on: target, act) else { return used }
      case 0x08, 0x7f:
        // Remove all bytes of a multi-byte character.
        while let last = line.popLast(), last & 0xc0 == 0x80 {}
        if echoes { echo += Self.bytes("\u{8} \u{8}") }
      case 0x15:
        // Ctrl-U
        line = []
        if echoes { echo += Self.bytes("\n" + Self.prompt) }
      case 0x09: line.append(0x20)
      case ..<0x20: break
      default:
        guard line.count < Self.lineLimit else {
          isTooLong = true
          continue
        }
        line.append(byte)
        if echoes { echo.append(byte) }
      }
    }
    if !echo.isEmpty { _ = act(.send(echo)) }
    return used
  }

  private mutating func carryOut(on target: any MonitorTarget, _ act: (QMPSession.Output) -> Bool) -> Bool {
    defer {
      line = []
      isTooLong = false
    }
    let answer =
      isTooLong
      ? HumanCommands.Answer(text: "a line must be at most \(Self.lineLimit) bytes long\n")
      : HumanCommands.run(String(decoding: line, as: UTF8.self), on: target)
    let goesOn = act(.send(Self.bytes(answer.text + Self.prompt)))
    guard let action = answer.afterwards else { return goesOn }
    return act(.perform(action)) && goesOn
  }

  /// Converts line ends to those of a raw terminal. QEMU's monitor writes them to every chardev (monitor/monitor.c,
  /// `monitor_puts`).
  static func bytes(_ text: String) -> [UInt8] {
    var bytes: [UInt8] = []
    for byte in text.utf8 {
      if byte == 0x0a { bytes.append(0x0d) }
      bytes.append(byte)
    }
    return bytes
  }
}
