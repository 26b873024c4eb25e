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
