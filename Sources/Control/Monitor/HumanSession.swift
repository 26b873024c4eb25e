/// One person's conversation with the monitor: bytes in, bytes out. The prompt is QEMU's `(qemu) `, as scripts that
/// drive a monitor wait for just that.
package struct HumanSession {
  static let prompt = "(qemu) "
  /// In bytes; what is longer is no line.
  static let lineLimit = 4096

  private let echoes: Bool
  private var line: [UInt8] = []
  private var isTooLong = false
  private var afterReturn = false

  /// - Parameter echoes: what is typed is shown: a terminal does not do that itself, as its mode is raw.
  package init(echoes: Bool) { self.echoes = echoes }

  /// What a person sees first.
  var greeting: [UInt8] {
    Self.bytes("Nestling \(HelpText.versionNumber) monitor - type 'help' for more information\n" + Self.prompt)
  }

  /// Takes what was typed.
  /// - Parameter act: false when the person's terminal is behind, and further lines wait.
  /// - Returns: how many bytes that used up; the rest is to come again.
  @discardableResult
  package mutating func receive(
    _ bytes: some Sequence<UInt8>, on target: any MonitorTarget, _ act: (QMPSession.Output) -> Bool
  ) -> Int {
    var echo: [UInt8] = []
    var used = 0
    for byte in bytes {
      used += 1
      // A return and a newline are one line's end.
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
        // Of a character of several bytes, all of them.
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
      ? HumanCommands.Answer(text: "a line can be \(Self.lineLimit) bytes long at most\n")
      : HumanCommands.run(String(decoding: line, as: UTF8.self), on: target)
    let goesOn = act(.send(Self.bytes(answer.text + Self.prompt)))
    guard let action = answer.afterwards else { return goesOn }
    return act(.perform(action)) && goesOn
  }

  /// With the line's ends that a raw terminal wants, and QEMU's monitor writes everywhere (monitor/monitor.c,
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
