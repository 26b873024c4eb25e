/// Interrupts: an exception ends the kernel with a line that names it. All other vectors are counted for each
/// processor.

enum Interrupts {
  static let base: UInt32 = 0x30
  static let timer: UInt32 = 0x40
  static let ping: UInt32 = 0x41
  static let pong: UInt32 = 0x42
  static let device: UInt32 = 0x50
  static let spurious: UInt32 = 0xff

  /// The number of APIC identifiers with separate counts. A larger identifier shares the count of a smaller one.
  private static let processors: UInt32 = 16
  /// One count for each processor and vector, so that no two processors write the same one.
  nonisolated(unsafe) private static var counts = InlineArray<4096, UInt32>(repeating: 0)

  /// Returns a vector's count on all processors.
  static func count(_ vector: UInt32) -> UInt32 {
    var sum: UInt32 = 0
    for processor in 0..<processors { sum &+= count(vector, on: processor) }
    return sum
  }

  /// - Parameter processor: an APIC identifier.
  static func count(_ vector: UInt32, on processor: UInt32) -> UInt32 {
    // A volatile load, because the compiler does not see the handler's writes.
    let place = UInt64(processor % processors) << 8 | UInt64(vector & 0xff)
    return unsafe withUnsafePointer(to: &counts) { load32(UInt64(UInt(bitPattern: $0)) + place * 4) }
  }

  /// A handler that is called at each interrupt with its vector, after the interrupt is counted and before the end of
  /// interrupt.
  nonisolated(unsafe) static var beforeEnd: (@convention(c) (UInt32) -> Void)?

  static func record(_ vector: UInt32, on processor: UInt32) {
    counts[Int((processor % processors) << 8 | vector & 0xff)] &+= 1
  }

  /// Writes 256 interrupt gates (SDM volume 3, 7.14.1) and loads the table.
  static func start() {
    let table = addressOfInterruptDescriptors()
    for vector in 0..<UInt64(256) {
      let handler = addressOfInterruptStubs() + vector * 16
      let codeSelector: UInt64 = 0x08
      let presentInterruptGate: UInt64 = 0x8e00
      store64(
        table + vector * 16,
        handler & 0xffff | codeSelector << 16 | presentInterruptGate << 32 | (handler >> 16 & 0xffff) << 48)
      store64(table + vector * 16 + 8, handler >> 32)
    }
    load()
    // If there are 8259s, the firmware has left them on exception vectors, so mask them.
    portWrite8(0x21, 0xff)
    portWrite8(0xa1, 0xff)
  }

  static func load() { loadInterruptTable(addressOfInterruptDescriptors()) }
}

@_cdecl("interruptArrived")
func interruptArrived(vector: UInt32, errorCode: UInt32, instruction: UInt64) {
  if vector < 32 {
    put("FAIL exception ")
    put(vector)
    put(", error code 0x")
    put(Hexadecimal(errorCode))
    put(", at 0x")
    put(Hexadecimal(instruction))
    endLine()
    Report.countFailure()
    Report.end()
  }
  Interrupts.record(vector, on: LocalAPIC.identifier)
  Interrupts.beforeEnd?(vector)
  if vector != Interrupts.spurious { LocalAPIC.endOfInterrupt() }
}
