import Hardware

/// A job slot of `dma-engine`: a copy with its own registers, which runs beside the command of COMMAND and the jobs of
/// the other slots. `Devices.docc/DMAEngine.md` shows how a driver uses the slots.
///
/// The engine has 16 slots. The registers of slot n are in BAR 0 from 0x400 + 0x40 n:
///
/// | offset | register | content |
/// |---|---|---|
/// | 0x00 | COMMAND | a write while the slot is idle starts a job: 3:0 operation, 3 (copy); 4 with PASID; 5 privileged; 6 execute; 8 use the device TLB; 10 (with 8) if a page does not grant the access, request the page and continue after the response; 11 interrupt at the end; 15 write a completion record at the end |
/// | 0x04 | STATUS | 0 RO busy; 1 write 1 to end the job, reads as 1 until it has ended; 15:8 RO result of the last job, as in the engine's STATUS; 16 RO the completion record did not reach memory |
/// | 0x08 | SOURCE | 63:0 address to read |
/// | 0x10 | DESTINATION | 63:0 address to write |
/// | 0x18 | COUNT | 63:0 bytes, up to 1 GiB |
/// | 0x20 | PASID | 19:0 |
/// | 0x24 | VECTOR | 3:0 MSI-X vector of the interrupt at the end of a job |
/// | 0x28 | COMPLETION | 63:0 address of the completion record, a multiple of 32; written without PASID |
/// | 0x30 | DONE | RO bytes moved by the last job |
/// | 0x38 | FAULT | RO 63:0 address of the access that ended the last job; zero if no access did |
///
/// While a slot is busy, its registers are read-only, except STATUS bit 1. When busy reads as 0, no access of the job
/// is in flight: software may reuse the memory and the PASID.
///
/// The completion record, of 24 bytes:
///
/// | offset | field |
/// |---|---|
/// | 0x00 | 31:0 the result, not zero. The engine writes it last, in one access with the slot |
/// | 0x04 | 31:0 the number of the slot |
/// | 0x08 | 63:0 DONE |
/// | 0x10 | 63:0 FAULT |
///
/// At the end of a job the engine writes the completion record, sets the slot's bit of JOBS DONE and the result, clears
/// busy, and sends the interrupt, in this order.
struct DMAEngineSlot: Sendable {
  enum Offset {
    static let command: UInt64 = 0x00
    static let status: UInt64 = 0x04
    static let source: UInt64 = 0x08
    static let destination: UInt64 = 0x10
    static let count: UInt64 = 0x18
    static let pasid: UInt64 = 0x20
    static let vector: UInt64 = 0x24
    static let completion: UInt64 = 0x28
    static let done: UInt64 = 0x30
    static let fault: UInt64 = 0x38
  }

  static let count = 16
  static let firstOffset: UInt64 = 0x400
  static let size: UInt64 = 0x40
  /// The bytes of BAR 0 that the slots take.
  static let range = firstOffset..<firstOffset + size * UInt64(count)

  /// The bits of COMMAND that a job may set.
  private static let commandMask: UInt32 = 0x8d7f
  private static let recordFlag: UInt32 = 1 << 15
  static let recordAlignment: UInt64 = 32

  private var commandBits: UInt32 = 0
  private var pasid: UInt32 = 0
  private var source: UInt64 = 0
  private var destination: UInt64 = 0
  private var byteCount: UInt64 = 0
  private var completion: UInt64 = 0
  private(set) var vector = 0
  private var isBusy = false
  /// Whether software has asked for the end of the running job.
  private(set) var isEnding = false
  private var result = DMAEngineRegisters.Result.none
  private var recordFailed = false
  private var done: UInt64 = 0
  private var fault: UInt64 = 0

  /// Returns the 4 bytes at a multiple of 4 below `size`.
  func word(_ offset: UInt64) -> UInt32 {
    func half(_ value: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: offset & 4 == 0 ? value : value >> 32) }
    return switch offset {
    case Offset.command: commandBits
    case Offset.status:
      (isBusy ? 1 : 0) | (isEnding ? 2 : 0) | result.rawValue << 8 | (recordFailed ? 1 << 16 : 0)
    case Offset.source, Offset.source + 4: half(source)
    case Offset.destination, Offset.destination + 4: half(destination)
    case Offset.count, Offset.count + 4: half(byteCount)
    case Offset.pasid: pasid
    case Offset.vector: UInt32(truncatingIfNeeded: vector)
    case Offset.completion, Offset.completion + 4: half(completion)
    case Offset.done, Offset.done + 4: half(done)
    case Offset.fault, Offset.fault + 4: half(fault)
    default: 0
    }
  }

  /// Writes 4 bytes at a multiple of 4.
  /// - Returns: whether the worker has something to do: a job has started, or must end.
  mutating func write(_ offset: UInt64, _ value: UInt32) -> Bool {
    func store(into register: inout UInt64) {
      if offset & 4 == 0 { register[bits: 0...31] = UInt64(value) } else { register[bits: 32...63] = UInt64(value) }
    }
    switch offset {
    case Offset.status:
      guard isBusy, value[bit: 1] else { return false }
      isEnding = true
      return true
    // The parameters of a running job are read-only.
    case _ where isBusy: break
    case Offset.command:
      commandBits = value
      isBusy = true
      recordFailed = false
      done = 0
      fault = 0
      return true
    case Offset.source, Offset.source + 4: store(into: &source)
    case Offset.destination, Offset.destination + 4: store(into: &destination)
    case Offset.count, Offset.count + 4: store(into: &byteCount)
    case Offset.pasid: pasid = value & 0xf_ffff
    case Offset.vector: vector = Int(value) & (DMAEngineRegisters.vectorCount - 1)
    case Offset.completion, Offset.completion + 4: store(into: &completion)
    default: break
    }
    return false
  }

  /// The running job's command, if any.
  var running: DMAEngineRegisters.Command? {
    guard isBusy else { return nil }
    return DMAEngineRegisters.Command(
      rawValue: commandBits & ~Self.recordFlag, pasidValue: pasid, source: source, destination: destination,
      count: byteCount, bufferOffset: 0)
  }

  /// Whether the bits of COMMAND are a valid combination.
  var isCommandValid: Bool {
    guard commandBits & ~Self.commandMask == 0, let running else { return false }
    return running.operation == .copy && running.isValid
  }

  /// The address of the job's completion record; nil if the job writes none.
  var record: UInt64? { commandBits & Self.recordFlag != 0 ? completion : nil }

  mutating func finish(_ outcome: DMAEngineOutcome) {
    isBusy = false
    isEnding = false
    result = outcome.result
    done = outcome.done
    fault = outcome.fault
    recordFailed = outcome.recordFailed
  }
}
