import Hardware
import Synchronization

/// QEMU's qtest protocol (system/qtest.c, "DOC: QTest Protocol"). A client makes the accesses of a CPU, with one
/// command in each line, and receives news: lines about changes of the IOAPIC's pins. The session uses the board, but
/// no socket: it takes lines and returns text.
///
/// For errors at which QEMU aborts (an invalid number, a size that is too large), the answer is a line that begins with
/// ERR.
///
/// Lock order: code that holds `state` takes no other lock. The IOAPIC's lock may be held when `state` is taken.
final class QTestSession: Sendable {
  /// The most bytes that one command may transfer. A line that is longer than a command for so many bytes is refused.
  static let longestTransfer = 32 << 20
  /// The most bytes that `memset` may set.
  static let longestFill: UInt64 = 1 << 30
  static let longestLine = 2 * longestTransfer + 256
  /// The most bytes of news that wait for the client. Further news is lost.
  private static let longestNews = 1 << 20

  private struct State {
    var interceptsIOAPIC = false
    /// The levels of the IOAPIC's pins.
    var levels = [Bool](repeating: false, count: 24)
    var news: [UInt8] = []
    /// The wires that `set_irq_in` drives, by pin.
    var lines: [Int: any InterruptLine] = [:]
    var onNews: (@Sendable () -> Void)?
  }

  private let board: Board
  private let memory: QTestMemory
  /// The clock that the client advances; nil if time passes by itself.
  private let clock: SteppedClock?
  private let state = Mutex(State())

  /// - Parameter clock: the clock that `clock_step` and `clock_set` advance; nil if there are no such commands.
  init(board: Board, clock: SteppedClock?) {
    self.board = board
    memory = QTestMemory(board: board)
    self.clock = clock
  }

  /// - Parameter handler: called on any thread when there is news to take. Must not block, because locks of devices may
  ///   be held.
  func onNews(_ handler: @escaping @Sendable () -> Void) { state.withLock { $0.onNews = handler } }

  var hasNews: Bool { state.withLock { !$0.news.isEmpty } }

  /// Drops the news of the former client, and assumes that all pins are low. Called when a client connects.
  func begin() {
    state.withLock { state in
      state.news = []
      state.levels = [Bool](repeating: false, count: state.levels.count)
    }
  }

  /// Returns the news since the last call, as whole lines.
  func takeNews() -> [UInt8] {
    state.withLock { state in
      defer { state.news = [] }
      return state.news
    }
  }

  /// Carries out one command.
  /// - Parameter line: the command without its newline.
  /// - Returns: the answer with its newline; empty for an empty line. The caller must send the news before the answer.
  func execute(_ line: ArraySlice<UInt8>) -> [UInt8] {
    var line = QTestLine(line)
    guard let command = line.word() else { return [] }
    var answer: [UInt8]
    do throws(QTestLine.Problem) {
      answer =
        try perform(String(decoding: command.prefix(32), as: UTF8.self), &line)
        ?? Array("FAIL Unknown command '\(QTestLine.text(command))'".utf8)
    } catch {
      answer = Array(Self.text(of: error).utf8)
    }
    answer.append(UInt8(ascii: "\n"))
    return answer
  }

  static func text(of problem: QTestLine.Problem) -> String {
    switch problem {
    case .missingArgument: "ERR missing argument"
    case .notNumber(let word): "ERR invalid number '\(word)'"
    case .notHexadecimal: "ERR invalid hexadecimal data"
    case .size: "ERR invalid argument size"
    case .port(let port): "ERR invalid port 0x\(String(port, radix: 16))"
    case .tooLong: "ERR line too long"
    }
  }

  /// - Returns: nil for an unknown command.
  private func perform(_ command: String, _ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8]? {
    switch command {
    case "inb": return try readPort(.byte, &line)
    case "inw": return try readPort(.word, &line)
    case "inl": return try readPort(.doubleword, &line)
    case "outb": return try writePort(.byte, &line)
    case "outw": return try writePort(.word, &line)
    case "outl": return try writePort(.doubleword, &line)
    case "readb": return try readNumber(.byte, &line)
    case "readw": return try readNumber(.word, &line)
    case "readl": return try readNumber(.doubleword, &line)
    case "readq": return try readNumber(.quadword, &line)
    case "writeb": return try writeNumber(.byte, &line)
    case "writew": return try writeNumber(.word, &line)
    case "writel": return try writeNumber(.doubleword, &line)
    case "writeq": return try writeNumber(.quadword, &line)
    case "read": return try read(&line)
    case "write": return try write(&line)
    case "b64read": return try readBase64(&line)
    case "b64write": return try writeBase64(&line)
    case "memset": return try fill(&line)
    case "endianness": return Array("OK little".utf8)
    case "clock_step": return try clock.map { clock throws(QTestLine.Problem) in try step(clock, &line) }
    case "clock_set": return try clock.map { clock throws(QTestLine.Problem) in try set(clock, &line) }
    case "irq_intercept_in": return try intercept(&line, outbound: false)
    case "irq_intercept_out": return try intercept(&line, outbound: true)
    case "set_irq_in": return try setInterrupt(&line)
    case "module_load":
      // There are no modules to load.
      _ = try line.required()
      _ = try line.required()
      return Array("FAIL".utf8)
    default: return nil
    }
  }

  private static let done = Array("OK".utf8)

  private static func answer(_ text: String) -> [UInt8] { Array(text.utf8) }

  private static func hexadecimal(_ value: UInt64, digits: Int) -> String {
    let text = String(value, radix: 16)
    return "0x" + String(repeating: "0", count: max(0, digits - text.utf8.count)) + text
  }

  // MARK: Ports

  private func port(_ line: inout QTestLine) throws(QTestLine.Problem) -> UInt16 {
    let number = try line.number()
    guard let port = UInt16(exactly: number) else { throw .port(number) }
    return port
  }

  private func readPort(_ width: AccessWidth, _ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let value = board.readPort(try port(&line), width.rawValue)
    return Self.answer("OK " + Self.hexadecimal(value, digits: 4))
  }

  private func writePort(_ width: AccessWidth, _ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let port = try port(&line)
    board.writePort(port, width.rawValue, try line.number() & width.allOnes)
    return Self.done
  }

  // MARK: Memory

  private func readNumber(_ width: AccessWidth, _ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let bytes = memory.read(try line.number(), count: width.rawValue)
    let value = bytes.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    return Self.answer("OK " + Self.hexadecimal(value, digits: 16))
  }

  private func writeNumber(_ width: AccessWidth, _ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let address = try line.number()
    let value = try line.number()
    memory.write((0..<width.rawValue).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }, to: address)
    return Self.done
  }

  private func size(_ line: inout QTestLine) throws(QTestLine.Problem) -> Int {
    let size = try line.number()
    guard size <= UInt64(Self.longestTransfer) else { throw .size }
    return Int(size)
  }

  private func read(_ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let address = try line.number()
    let size = try size(&line)
    if size == 0 { throw .size }
    let digits = Array("0123456789abcdef".utf8)
    var answer = Array("OK 0x".utf8)
    answer.reserveCapacity(answer.count + 2 * size + 1)
    for byte in memory.read(address, count: size) {
      answer.append(digits[Int(byte >> 4)])
      answer.append(digits[Int(byte & 15)])
    }
    return answer
  }

  private func write(_ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let address = try line.number()
    let size = try size(&line)
    let text = try line.required()
    // Two characters, which should be "0x" but are not checked, and at least one digit.
    guard text.count >= 3 else { throw .size }
    let digits = text.dropFirst(2)
    var bytes = [UInt8](repeating: 0, count: size)
    for index in 0..<min(size, digits.count / 2) {
      let at = digits.startIndex + 2 * index
      guard let high = QTestLine.nibble(digits[at]), let low = QTestLine.nibble(digits[at + 1]) else {
        throw .notHexadecimal
      }
      bytes[index] = high << 4 | low
    }
    memory.write(bytes, to: address)
    return Self.done
  }

  private func readBase64(_ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let address = try line.number()
    return Array("OK ".utf8) + Base64.encode(memory.read(address, count: try size(&line)))
  }

  private func writeBase64(_ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let address = try line.number()
    let size = try size(&line)
    let text = try line.required()
    guard text.count >= 3 else { throw .size }
    memory.write(Array(Base64.decode(text).prefix(size)), to: address)
    return Self.done
  }

  private func fill(_ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let address = try line.number()
    let size = try line.number()
    let pattern = UInt8(truncatingIfNeeded: try line.number())
    guard size <= Self.longestFill else { throw .size }
    var done: UInt64 = 0
    while done < size {
      // A multiple of 8, so that the bus sees the same accesses as for one large write.
      let count = min(size - done, 1 << 20)
      memory.write([UInt8](repeating: pattern, count: Int(count)), to: address &+ done)
      done += count
    }
    return Self.done
  }

  // MARK: Time

  private func step(_ clock: SteppedClock, _ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let old = clock.now
    let time: UInt64
    if let nanoseconds = try line.optionalSignedNumber() {
      time = nanoseconds < 0 ? old : old + UInt64(nanoseconds)
    } else if let deadline = clock.nextDeadline {
      time = deadline
    } else {
      return Self.answer(
        "FAIL cannot advance clock to the next deadline because there is no pending deadline")
    }
    let new = clock.advance(to: time)
    return Self.answer(new > old ? "OK \(new)" : "FAIL could not advance time")
  }

  private func set(_ clock: SteppedClock, _ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let time = UInt64(clamping: try line.signedNumber())
    let new = clock.advance(to: time)
    return Self.answer("\(new == time ? "OK" : "FAIL") \(new)")
  }

  // MARK: Interrupts

  /// QEMU's names of the IOAPIC, the only device whose pins can be intercepted or driven.
  private static let devices: Set<String> = ["ioapic", "/machine/q35/ioapic"]

  private func intercept(_ line: inout QTestLine, outbound: Bool) throws(QTestLine.Problem) -> [UInt8] {
    guard Self.devices.contains(try line.text()) else { return Self.answer("FAIL Unknown device") }
    if line.word() != nil, !outbound {
      return Self.answer("FAIL Interception of named in-GPIOs not yet supported")
    }
    // The IOAPIC has no output pins.
    if outbound { return Self.answer("FAIL No intercepts installed") }
    let installs = state.withLock { state in
      defer { state.interceptsIOAPIC = true }
      return !state.interceptsIOAPIC
    }
    if installs { board.observePins { [weak self] pin, asserted in self?.pinChanged(pin, asserted) } }
    return Self.done
  }

  private func pinChanged(_ pin: Int, _ asserted: Bool) {
    let handler = state.withLock { state -> (@Sendable () -> Void)? in
      guard state.levels.indices.contains(pin), state.levels[pin] != asserted else { return nil }
      state.levels[pin] = asserted
      if state.news.count < Self.longestNews {
        state.news += Array("IRQ \(asserted ? "raise" : "lower") \(pin)\n".utf8)
      }
      return state.onNews
    }
    handler?()
  }

  private func setInterrupt(_ line: inout QTestLine) throws(QTestLine.Problem) -> [UInt8] {
    let device = try line.text()
    let name = try line.text()
    let number = try line.signedNumber()
    let level = try line.signedNumber()
    guard Self.devices.contains(device) else { return Self.answer("FAIL Unknown device") }
    guard name == "unnamed-gpio-in", let pin = Int(exactly: number), (0..<24).contains(pin) else {
      return Self.answer("FAIL Unknown pin")
    }
    let line = state.withLock { $0.lines[pin] } ?? board.makeLine(pin)
    state.withLock { $0.lines[pin] = line }
    line.set(level != 0)
    return Self.done
  }
}
