import Hardware

/// One entry of an I/O APIC's redirection table (82093AA data sheet, section 3.2.4; remappable format: VT-d 5.1.5.1).
/// The bits of the message come from the same bits of the entry in both formats:
///
///       63                    49 48 47      17 16 15 14 13 12 11 10   8 7       0
///      +------------------------+--+----------+--+--+--+--+--+--+------+---------+
///      | destination 63:56, or  |F | reserved |M |T |R |P |S |D | mode | vector  |
///      | index 14:0             |  |          |  |  |  |  |  |  |      |         |
///      +------------------------+--+----------+--+--+--+--+--+--+------+---------+
///        address 19:5            4                            2  data 10:8  7:0
///
/// F format, M mask, T trigger mode, R remote IRR, P polarity, S delivery status, D destination mode
/// (compatibility) or index 15 (remappable).
public struct RedirectionEntry: RawRepresentable, Hashable, Sendable {
  public var rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// After reset: masked, everything else zero.
  public static let reset = RedirectionEntry(rawValue: 1 << 16)

  public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue) }

  /// Bit 14: a local APIC has accepted a level-triggered interrupt and not ended it. Read-only.
  public internal(set) var remoteIRR: Bool {
    get { rawValue[bit: 14] }
    set { rawValue[bit: 14] = newValue }
  }

  /// Bit 15: level-triggered, not edge-triggered.
  public var isLevelTriggered: Bool { rawValue[bit: 15] }

  /// Bit 16.
  public var isMasked: Bool { rawValue[bit: 16] }

  /// The bits that software can write: all but delivery status (bit 12, zero, because messages are sent at once),
  /// remote IRR, and the reserved bits 47:17.
  static let writable: UInt64 = 0xffff_0000_0001_afff

  mutating func write(_ value: UInt32, upperHalf: Bool) {
    let shift = upperHalf ? 32 : 0
    let mask = Self.writable & (UInt64(UInt32.max) << shift)
    rawValue = rawValue & ~mask | UInt64(value) << shift & mask
    // Remote IRR is clear in an edge-triggered entry. Without an EOI register, software ends an interrupt by switching
    // the entry to edge-triggered and back (Linux, __eoi_ioapic_pin).
    if !isLevelTriggered { remoteIRR = false }
  }

  /// The message that the pin sends, regardless of the mask.
  public var message: InterruptMessage {
    let address: UInt64 = 0xfee0_0000 | rawValue[bits: 48...63] << 4 | rawValue[bits: 11...11] << 2
    var data = UInt32(truncatingIfNeeded: rawValue[bits: 0...10])
    if isLevelTriggered {
      data[bit: 14] = true  // Level: assert.
      data[bit: 15] = true
    }
    return InterruptMessage(address: address, data: data)
  }
}
