import Hardware

/// The registers of `edu` (QEMU's docs/specs/edu.rst, "MMIO area spec") as a value. A write returns the change of the
/// interrupt; `hasWork` and `transfer` describe the work for the worker.
struct EduRegisters: Sendable {
  enum Offset {
    static let identification: UInt64 = 0x00
    static let liveness: UInt64 = 0x04
    static let factorial: UInt64 = 0x08
    static let status: UInt64 = 0x20
    static let interruptStatus: UInt64 = 0x24
    static let interruptRaise: UInt64 = 0x60
    static let interruptAcknowledge: UInt64 = 0x64
    /// The device answers accesses of 8 bytes from here on.
    static let firstWide: UInt64 = 0x80
    static let source: UInt64 = 0x80
    static let destination: UInt64 = 0x88
    static let count: UInt64 = 0x90
    static let command: UInt64 = 0x98
  }

  enum Status {
    static let computing: UInt32 = 0x01
    static let raisesInterrupt: UInt32 = 0x80
  }

  enum Command {
    static let start: UInt64 = 1
    /// The direction of the transfer. Set: from the buffer to memory; clear: from memory to the buffer.
    static let toMemory: UInt64 = 2
    static let raisesInterrupt: UInt64 = 4
  }

  /// Bits of the interrupt status register that the device itself sets.
  enum Cause {
    static let factorial: UInt32 = 0x001
    static let transfer: UInt32 = 0x100
  }

  /// Version 1.0 of the device.
  static let identification: UInt64 = 0x0100_00ed
  /// The buffer's address for the DMA engine. The BAR does not show the buffer.
  static let bufferStart: UInt64 = 0x40000
  /// The buffer's size in bytes.
  static let bufferSize = 4096

  /// How the device handles an access, as in QEMU's memory core.
  enum Access: Hashable, Sendable {
    case single
    /// 8 bytes aligned to 4: two accesses of 4 bytes.
    case halves
    /// Not 4 or 8 bytes, or not aligned: reads as zero.
    case refused
    /// 8 bytes below 0x80: reads as all ones.
    case unanswered

    init(offset: UInt64, width: AccessWidth) {
      guard width == .doubleword || width == .quadword, offset % 4 == 0 else {
        self = .refused
        return
      }
      if width == .doubleword {
        self = .single
      } else if offset % 8 != 0 {
        self = .halves
      } else {
        self = offset < Offset.firstWide ? .unanswered : .single
      }
    }
  }

  /// The change of the interrupt, by the pin or by MSI.
  enum Interrupt: Hashable, Sendable {
    case none, raise, lower
  }

  /// A transfer with the registers at its start.
  struct Transfer: Hashable, Sendable {
    var toMemory: Bool
    /// The DMA address, before the mask is applied.
    var address: UInt64
    /// The range in the buffer; nil if it does not lie completely in the buffer.
    var range: Range<Int>?
  }

  private var liveness: UInt32 = 0
  private var factorial: UInt32 = 0
  private var status: UInt32 = 0
  private var interruptStatus: UInt32 = 0
  private var source: UInt64 = 0
  private var destination: UInt64 = 0
  private var count: UInt64 = 0
  private var command: UInt64 = 0

  func read(_ offset: UInt64) -> UInt64 {
    switch offset {
    case Offset.identification: Self.identification
    case Offset.liveness: UInt64(liveness)
    case Offset.factorial: UInt64(factorial)
    case Offset.status: UInt64(status)
    case Offset.interruptStatus: UInt64(interruptStatus)
    case Offset.source: source
    case Offset.destination: destination
    case Offset.count: count
    case Offset.command: command
    default: .max
    }
  }

  mutating func write(_ offset: UInt64, _ value: UInt64) -> Interrupt {
    let low = UInt32(truncatingIfNeeded: value)
    switch offset {
    case Offset.liveness: liveness = ~low
    case Offset.factorial:
      if status & Status.computing == 0 {
        factorial = low
        status |= Status.computing
      }
    case Offset.status: status = status & ~Status.raisesInterrupt | low & Status.raisesInterrupt
    case Offset.interruptRaise: return raise(low)
    case Offset.interruptAcknowledge:
      interruptStatus &= ~low
      return interruptStatus == 0 ? .lower : .none
    // The registers of a running transfer are read-only.
    case Offset.source: if !isTransferring { source = value }
    case Offset.destination: if !isTransferring { destination = value }
    case Offset.count: if !isTransferring { count = value }
    case Offset.command: if !isTransferring, value & Command.start != 0 { command = value }
    default: break
    }
    return .none
  }

  private mutating func raise(_ cause: UInt32) -> Interrupt {
    interruptStatus |= cause
    return interruptStatus == 0 ? .none : .raise
  }

  private var isTransferring: Bool { command & Command.start != 0 }

  // MARK: Work of the worker

  var hasWork: Bool { status & Status.computing != 0 || isTransferring }

  /// Computes the requested factorial, modulo 2^32.
  mutating func finishFactorial() -> Interrupt {
    guard status & Status.computing != 0 else { return .none }
    var product: UInt32 = 1
    var factor = factorial
    // From 34! on, the product contains 2^32 and is zero in any order of the factors, so the loop is always short.
    while factor > 0, product != 0 {
      product &*= factor
      factor -= 1
    }
    factorial = product
    status &= ~Status.computing
    return status & Status.raisesInterrupt != 0 ? raise(Cause.factorial) : .none
  }

  /// The transfer to perform, if any.
  var transfer: Transfer? {
    guard isTransferring else { return nil }
    let toMemory = command & Command.toMemory != 0
    let inside = toMemory ? source : destination
    let size = UInt64(Self.bufferSize)
    var range: Range<Int>?
    if inside >= Self.bufferStart, inside - Self.bufferStart <= size, count <= size - (inside - Self.bufferStart) {
      let start = Int(inside - Self.bufferStart)
      range = start..<start + Int(count)
    }
    return Transfer(toMemory: toMemory, address: toMemory ? destination : source, range: range)
  }

  mutating func finishTransfer() -> Interrupt {
    command &= ~Command.start
    return command & Command.raisesInterrupt != 0 ? raise(Cause.transfer) : .none
  }
}
