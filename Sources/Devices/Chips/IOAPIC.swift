import Hardware

/// An I/O APIC as a value: 24 pins and their redirection table (82093AA data sheet, chapter 3), with the EOI register
/// of version 0x20 (I/O Controller Hub 9 data sheet, 13.5). `IOAPICDevice` connects it to the machine.
///
/// Pins have logical levels: the polarity bit is stored but has no effect. An edge on a masked pin is lost, as in the
/// data sheet.
public struct IOAPIC: Sendable {
  public static let pinCount = 24

  /// The effects of a call, which `IOAPICDevice` carries out in this order.
  public struct Effects: Hashable, Sendable {
    /// The pins whose `message(_:)` may have changed.
    public var rerouted = PinSet()
    /// The pins that send their message.
    public var signalled = PinSet()
    /// The level-triggered pins whose interrupt the guest has ended, including interrupts that bypassed this chip
    /// through an irqfd.
    public var ended = PinSet()

    public init() {}
  }

  /// Register indices for IOREGSEL.
  private enum Index {
    static let identification: UInt8 = 0x00
    static let version: UInt8 = 0x01
    static let arbitration: UInt8 = 0x02
    static let redirectionTable: UInt8 = 0x10
  }

  private enum Offset {
    static let select: UInt64 = 0x00
    static let window: UInt64 = 0x10
    static let endOfInterrupt: UInt64 = 0x40
  }

  private var select: UInt8 = 0
  /// Bits 27:24 of the identification register.
  private var identification: UInt8
  private var entries = [RedirectionEntry](repeating: .reset, count: pinCount)
  private var asserted = PinSet()

  /// - Parameter identification: the APIC ID in the MADT, bits 3:0.
  public init(identification: UInt8 = 0) {
    self.identification = identification & 0xf
  }

  /// - Parameter pin: 0 to 23.
  public func entry(_ pin: Int) -> RedirectionEntry { entries[pin] }

  /// Returns the message that a pin sends; nil while the pin is masked.
  ///
  /// A masked pin keeps its message while remote IRR is set. KVM reports the EOI of only those vectors that are in its
  /// routes, and without the report remote IRR would stay set forever.
  public func message(_ pin: Int) -> InterruptMessage? {
    let entry = entries[pin]
    return entry.isMasked && !entry.remoteIRR ? nil : entry.message
  }

  /// Returns the level-triggered pins that have this vector in their entries, masked or not.
  public func levelTriggeredPins(vector: UInt8) -> PinSet {
    var pins = PinSet()
    for pin in entries.indices where entries[pin].isLevelTriggered && entries[pin].vector == vector {
      pins.insert(pin)
    }
    return pins
  }

  // MARK: Pins

  /// - Parameter pin: 0 to 23.
  public mutating func setPin(_ pin: Int, asserted new: Bool, effects: inout Effects) {
    let old = asserted.contains(pin)
    guard new != old else { return }
    if new { asserted.insert(pin) } else { asserted.remove(pin) }
    if entries[pin].isLevelTriggered {
      sendLevel(pin, &effects)
    } else if new, !entries[pin].isMasked {
      effects.signalled.insert(pin)
    }
  }

  /// Handles the end of an interrupt with this vector: an EOI at a local APIC, or a write to the EOI register.
  public mutating func endOfInterrupt(vector: UInt8, effects: inout Effects) {
    for pin in levelTriggeredPins(vector: vector) { endOfInterrupt(pin: pin, effects: &effects) }
  }

  /// - Parameter pin: 0 to 23. For an edge-triggered pin the call has no effect.
  public mutating func endOfInterrupt(pin: Int, effects: inout Effects) {
    guard entries[pin].isLevelTriggered else { return }
    effects.ended.insert(pin)
    guard entries[pin].remoteIRR else { return }
    entries[pin].remoteIRR = false
    if entries[pin].isMasked { effects.rerouted.insert(pin) }
    sendLevel(pin, &effects)
  }

  private mutating func sendLevel(_ pin: Int, _ effects: inout Effects) {
    guard asserted.contains(pin), !entries[pin].isMasked, !entries[pin].remoteIRR else { return }
    entries[pin].remoteIRR = true
    effects.signalled.insert(pin)
  }

  // MARK: Registers

  /// - Parameter offset: within the 4 KiB page. The window answers doublewords only.
  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    switch offset {
    case Offset.select: return UInt64(select)
    case Offset.window where width == .doubleword: return UInt64(readSelected())
    default: return 0
    }
  }

  /// - Parameter offset: within the 4 KiB page. The window and EOI accept doublewords only.
  public mutating func write(offset: UInt64, width: AccessWidth, value: UInt64, effects: inout Effects) {
    switch offset {
    case Offset.select:
      select = UInt8(truncatingIfNeeded: value)
    case Offset.window where width == .doubleword:
      writeSelected(UInt32(truncatingIfNeeded: value), &effects)
    case Offset.endOfInterrupt where width == .doubleword:
      endOfInterrupt(vector: UInt8(truncatingIfNeeded: value), effects: &effects)
    default:
      break
    }
  }

  /// Resets the registers. The pins keep the levels that their devices drive.
  public mutating func reset(identification: UInt8, effects: inout Effects) {
    let pins = asserted
    self = IOAPIC(identification: identification)
    asserted = pins
    effects.rerouted = .all
  }

  private var selectedPin: Int? {
    guard select >= Index.redirectionTable else { return nil }
    let pin = Int(select - Index.redirectionTable) / 2
    return pin < Self.pinCount ? pin : nil
  }

  private var selectsUpperHalf: Bool { select & 1 != 0 }

  private func readSelected() -> UInt32 {
    switch select {
    case Index.identification, Index.arbitration:
      return UInt32(identification) << 24
    case Index.version:
      return UInt32(Self.pinCount - 1) << 16 | 0x20
    default:
      guard let pin = selectedPin else { return 0 }
      return UInt32(truncatingIfNeeded: entries[pin].rawValue >> (selectsUpperHalf ? 32 : 0))
    }
  }

  private mutating func writeSelected(_ value: UInt32, _ effects: inout Effects) {
    if select == Index.identification { identification = UInt8(truncatingIfNeeded: value >> 24) & 0xf }
    guard let pin = selectedPin else { return }
    entries[pin].write(value, upperHalf: selectsUpperHalf)
    effects.rerouted.insert(pin)
    if entries[pin].isLevelTriggered { sendLevel(pin, &effects) }
  }
}

/// A set of an I/O APIC's pins: one bit per pin, without allocation.
public struct PinSet: Hashable, Sendable, Sequence {
  private var bits: UInt32 = 0

  public init() {}

  static let all: PinSet = {
    var pins = PinSet()
    for pin in 0..<IOAPIC.pinCount { pins.insert(pin) }
    return pins
  }()

  public var isEmpty: Bool { bits == 0 }

  public func contains(_ pin: Int) -> Bool { bits >> pin & 1 != 0 }
  public mutating func insert(_ pin: Int) { bits |= 1 << pin }
  public mutating func remove(_ pin: Int) { bits &= ~(1 << pin) }

  public func makeIterator() -> Iterator { Iterator(bits: bits) }

  /// Iterates from the lowest pin to the highest.
  public struct Iterator: IteratorProtocol {
    fileprivate var bits: UInt32

    public mutating func next() -> Int? {
      guard bits != 0 else { return nil }
      defer { bits &= bits - 1 }
      return bits.trailingZeroBitCount
    }
  }
}
