import Hardware

/// The registers of `iommu-testdev` (QEMU's docs/specs/iommu-testdev.rst, "Device Interface") as a value. All are 32
/// bits wide; other offsets read as zero.
struct IOMMUTestRegisters: Sendable {
  enum Offset {
    /// A read runs the armed transfer.
    static let triggering: UInt64 = 0x00
    static let virtualLow: UInt64 = 0x04
    static let virtualHigh: UInt64 = 0x08
    static let length: UInt64 = 0x0c
    static let result: UInt64 = 0x10
    static let doorbell: UInt64 = 0x14
    static let attributes: UInt64 = 0x18
    static let physicalLow: UInt64 = 0x1c
    static let physicalHigh: UInt64 = 0x20
  }

  /// Values of the result register.
  enum Result {
    static let success: UInt32 = 0
    static let idle: UInt32 = 0xffff_ffff
    static let busy: UInt32 = 0xffff_fffe
    static let badLength: UInt32 = 0xdead_0001
    static let writeFailed: UInt32 = 0xdead_0002
    static let readFailed: UInt32 = 0xdead_0003
    static let mismatch: UInt32 = 0xdead_0004
    static let notArmed: UInt32 = 0xdead_0005
    static let badAttributes: UInt32 = 0xdead_0006
  }

  /// The pattern, little-endian, which the transfer repeats.
  static let pattern: UInt32 = 0x1234_5678

  /// The longest transfer, in bytes. QEMU has no limit, but allocates memory for the whole length; its tests move at
  /// most a few pages. The vCPU that reads the triggering register waits for the transfer, so a limit is necessary
  /// here.
  static let longest: UInt32 = 1 << 20

  /// A transfer with the registers at its start.
  struct Transfer: Hashable, Sendable {
    var virtualAddress: UInt64
    var physicalAddress: UInt64
    /// The length in bytes, 1 to `longest`.
    var count: Int
  }

  private var virtualAddress: UInt64 = 0
  private var physicalAddress: UInt64 = 0
  private var length: UInt32 = 0
  private var attributes: UInt32 = 2  // space non-secure, not valid
  private var isArmed = false
  var result = Result.idle

  func read(_ offset: UInt64) -> UInt32 {
    switch offset {
    case Offset.virtualLow: UInt32(truncatingIfNeeded: virtualAddress)
    case Offset.virtualHigh: UInt32(truncatingIfNeeded: virtualAddress >> 32)
    case Offset.length: length
    case Offset.result: result
    case Offset.attributes: attributes
    case Offset.physicalLow: UInt32(truncatingIfNeeded: physicalAddress)
    case Offset.physicalHigh: UInt32(truncatingIfNeeded: physicalAddress >> 32)
    default: 0
    }
  }

  mutating func write(_ offset: UInt64, _ value: UInt32) {
    switch offset {
    case Offset.virtualLow: virtualAddress[bits: 0...31] = UInt64(value)
    case Offset.virtualHigh: virtualAddress[bits: 32...63] = UInt64(value)
    case Offset.length: length = value
    case Offset.result: result = value
    case Offset.doorbell:
      isArmed = value & 1 != 0
      result = isArmed ? Result.busy : Result.idle
    case Offset.attributes: attributes = value
    case Offset.physicalLow: physicalAddress[bits: 0...31] = UInt64(value)
    case Offset.physicalHigh: physicalAddress[bits: 32...63] = UInt64(value)
    default: break
    }
  }

  /// Disarms the device and returns the transfer.
  /// - Returns: nil if there is no valid transfer; the result register then contains the reason.
  mutating func take() -> Transfer? {
    guard isArmed else {
      result = Result.notArmed
      return nil
    }
    isArmed = false
    guard (1...Self.longest).contains(length) else {
      result = Result.badLength
      return nil
    }
    guard attributesAgree else {
      result = Result.badAttributes
      return nil
    }
    return Transfer(virtualAddress: virtualAddress, physicalAddress: physicalAddress, count: Int(length))
  }

  /// Bit 0: secure; bits 2:1: Arm's security space, 0 secure, 1 non-secure; bit 3: the space is valid.
  private var attributesAgree: Bool {
    guard attributes[bit: 3] else { return true }
    switch attributes[bits: 1...2] {
    case 0: return attributes[bit: 0]
    case 1: return !attributes[bit: 0]
    default: return true
    }
  }
}
