/// The local APIC, in x2APIC mode if the processor has it, else through memory. Intel SDM volume 3, chapter 12.

enum LocalAPIC {
  /// Offsets in memory. The MSR of an x2APIC is 0x800 + offset / 16.
  enum Register: UInt32 {
    case identifier = 0x020
    case version = 0x030
    case endOfInterrupt = 0x0b0
    case spuriousVector = 0x0f0
    /// The first of eight in-service registers, of 32 vectors each.
    case inService = 0x100
    case interruptCommand = 0x300
    case interruptCommandHigh = 0x310
    case timer = 0x320
    case initialCount = 0x380
    case currentCount = 0x390
    case divideConfiguration = 0x3e0
  }

  private static let baseMSR: UInt32 = 0x1b
  static let deadlineMSR: UInt32 = 0x6e0
  private static let memory: UInt64 = 0xfee0_0000
  nonisolated(unsafe) private(set) static var isX2APIC = false

  static var hasDeadlineTimer: Bool { cpuid(1, 0).ecx & 1 << 24 != 0 }

  /// Enables the local APIC. Each processor must call it.
  static func start() {
    let enable: UInt64 = 1 << 11
    let extended: UInt64 = 1 << 10
    isX2APIC = cpuid(1, 0).ecx & 1 << 21 != 0
    writeMSR(baseMSR, readMSR(baseMSR) | enable)
    if isX2APIC { writeMSR(baseMSR, readMSR(baseMSR) | enable | extended) }
    let softwareEnable: UInt32 = 1 << 8
    write(.spuriousVector, softwareEnable | Interrupts.spurious)
  }

  /// - Parameter index: selects one of several equal registers, 16 bytes apart.
  static func read(_ register: Register, index: UInt32 = 0) -> UInt32 {
    let offset = register.rawValue + index * 16
    if isX2APIC { return UInt32(truncatingIfNeeded: readMSR(0x800 + offset >> 4)) }
    return load32(memory + UInt64(offset))
  }

  static func write(_ register: Register, _ value: UInt32) {
    if isX2APIC {
      writeMSR(0x800 + register.rawValue >> 4, UInt64(value))
    } else {
      store32(memory + UInt64(register.rawValue), value)
    }
  }

  static var identifier: UInt32 {
    let value = read(.identifier)
    return isX2APIC ? value : value >> 24
  }

  /// Returns whether this processor has an interrupt with this vector in service: delivered and not yet ended.
  static func isInService(_ vector: UInt32) -> Bool {
    read(.inService, index: vector / 32) & 1 << (vector % 32) != 0
  }

  static func endOfInterrupt() { write(.endOfInterrupt, 0) }

  /// - Parameter command: the low half of the interrupt command register.
  static func send(_ command: UInt32, to destination: UInt32) {
    if isX2APIC {
      writeMSR(0x830, UInt64(destination) << 32 | UInt64(command))
      return
    }
    let deliveryPending: UInt32 = 1 << 12
    write(.interruptCommandHigh, destination << 24)
    write(.interruptCommand, command)
    while read(.interruptCommand) & deliveryPending != 0 { pauseProcessor() }
  }

  static func sendInit(to destination: UInt32) {
    send(0x4500, to: destination)  // INIT, assert
  }

  static func sendStartUp(page: UInt32, to destination: UInt32) {
    send(0x4600 | page, to: destination)
  }

  static func sendFixed(vector: UInt32, to destination: UInt32) {
    send(0x4000 | vector, to: destination)
  }
}
