/// A test kernel's output on COM1, and its end through isa-debug-exit.

enum Console {
  private static let port: UInt16 = 0x3f8
  private static let lineStatus: UInt16 = port + 5
  private static let transmitterHoldingEmpty: UInt8 = 0x20

  static func start() {
    portWrite8(port + 1, 0)  // no interrupts
    portWrite8(port + 3, 0x80)  // divisor latch
    portWrite8(port, 1)  // 115200
    portWrite8(port + 1, 0)
    portWrite8(port + 3, 3)  // 8N1
    portWrite8(port + 2, 7)  // FIFOs, cleared
    portWrite8(port + 4, 0xb)  // DTR, RTS, OUT2
  }

  static func put(_ byte: UInt8) {
    while portRead8(lineStatus) & transmitterHoldingEmpty == 0 { pauseProcessor() }
    portWrite8(port, byte)
  }
}

/// A number to print in base 16.
struct Hexadecimal {
  let value: UInt64
  let digits: Int

  init(_ value: some BinaryInteger, digits: Int = 1) {
    self.value = UInt64(truncatingIfNeeded: value)
    self.digits = digits
  }
}

func put(_ text: StaticString) {
  for index in 0..<text.utf8CodeUnitCount { Console.put(text.utf8Start[index]) }
}

func put(_ number: UInt64, base: UInt64, digits: Int) {
  var divisor: UInt64 = 1
  var count = 1
  while number / divisor >= base || count < digits {
    divisor *= base
    count += 1
  }
  while divisor > 0 {
    let digit = UInt8(truncatingIfNeeded: number / divisor % base)
    Console.put(digit < 10 ? 0x30 + digit : 0x61 + digit - 10)
    divisor /= base
  }
}

func put(_ number: some BinaryInteger) { put(UInt64(truncatingIfNeeded: number), base: 10, digits: 1) }
func put(_ number: Hexadecimal) { put(number.value, base: 16, digits: number.digits) }
func endLine() { Console.put(0x0a) }

/// The results of a kernel's checks. Each check prints `PASS name` or `FAIL why`. At the end the machine turns the exit
/// code into the process status, 33 if all passed.
struct Report {
  private static let debugExit: UInt16 = 0xf4
  private static let success: UInt32 = 0x10
  private static let failure: UInt32 = 0x11

  nonisolated(unsafe) private static var failures = 0

  static func pass(_ name: StaticString) {
    put("PASS ")
    put(name)
    endLine()
  }

  static func fail(_ why: StaticString) {
    put("FAIL ")
    put(why)
    endLine()
    failures += 1
  }

  static var hasFailed: Bool { failures != 0 }

  /// Counts a failure whose line the caller prints.
  static func countFailure() { failures += 1 }

  static func check(_ name: StaticString, _ holds: Bool) {
    if holds { pass(name) } else { fail(name) }
  }

  static func end() -> Never {
    portWrite32(debugExit, failures == 0 ? success : failure)
    put("FAIL no device answers at port 0xF4\n")
    while true { halt() }
  }
}
