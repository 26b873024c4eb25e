import Devices
import Hardware
import Linux
import TestSupport
import Testing

@testable import Machine

/// A whole board without a CPU, in this process, and a client of its qtest session.
final class QTestBoard {
  static let memorySize: UInt64 = 64 << 20

  let board: Board
  let interrupts = RecordingInterrupts()
  let clock: SteppedClock
  let session: QTestSession

  init(unit: IntelIOMMUOptions? = nil) throws {
    var configuration = MachineConfiguration()
    if let unit { configuration.devices = [unit] }
    let accelerator = QTestAccelerator(localInterrupts: interrupts)
    clock = accelerator.steppedClock
    board = try Board(
      memory: try GuestMemory(size: Self.memorySize, lowLimit: BoardLayout.lowMemoryLimit(memorySize: Self.memorySize)),
      accelerator: accelerator,
      layout: try #require(
        BoardLayout(memorySize: Self.memorySize, physicalAddressWidth: accelerator.physicalAddressWidth)),
      processorCount: 1, units: configuration.unitPlacement(configuration.devicePlacement()), serialOutput: nil,
      events: try EventQueue())
    session = QTestSession(board: board, clock: clock)
  }

  deinit { board.removeDevices() }

  /// Sends one line.
  /// - Returns: The pending `IRQ` lines and the answer, without the last newline.
  func send(_ line: String) -> String { send(Array(line.utf8)) }

  func send(_ line: [UInt8]) -> String {
    let answer = session.execute(line[...])
    return String(decoding: (session.takeNews() + answer).dropLast(), as: UTF8.self)
  }

  /// Sends a command and expects the answer OK.
  func order(_ line: String, sourceLocation: SourceLocation = #_sourceLocation) {
    let answer = send(line)
    #expect(answer == "OK", "\(line)", sourceLocation: sourceLocation)
  }

  /// Sends a command and returns the number in its answer.
  func ask(_ line: String, sourceLocation: SourceLocation = #_sourceLocation) throws -> UInt64 {
    let answer = send(line)
    let digits = try #require(answer.wholeMatch(of: /OK 0x([0-9a-f]+)/), "\(line): \(answer)").1
    return try #require(UInt64(digits, radix: 16), sourceLocation: sourceLocation)
  }

  // MARK: The driver's side

  func readConfiguration(_ function: UInt8, _ offset: Int) throws -> UInt32 {
    order("outl 0xcf8 \(1 << 31 | Int(function) << 8 | offset)")
    return UInt32(truncatingIfNeeded: try ask("inl 0xcfc"))
  }

  func writeConfiguration(_ function: UInt8, _ offset: Int, _ value: UInt32) {
    order("outl 0xcf8 \(1 << 31 | Int(function) << 8 | offset)")
    order("outl 0xcfc \(value)")
  }

  func store(_ value: UInt64, at address: UInt64) { order("writeq \(address) \(value)") }
  func load(_ address: UInt64) throws -> UInt64 { try ask("readq \(address)") }
  func store32(_ value: UInt32, at address: UInt64) { order("writel \(address) \(value)") }
  func load32(_ address: UInt64) throws -> UInt32 { UInt32(truncatingIfNeeded: try ask("readl \(address)")) }

  /// Waits for an effect of a device's own thread.
  func wait(_ what: String, sourceLocation: SourceLocation = #_sourceLocation, _ condition: () throws -> Bool) throws {
    let came = try eventually(condition)
    try #require(came, "\(what) did not occur", sourceLocation: sourceLocation)
  }
}
