/// Bits of a register by their numbers in its specification: `value[bit: 31]`, `value[bits: 2...4]`.

extension FixedWidthInteger where Self: UnsignedInteger {
  /// One bit, counted from the least significant.
  @inlinable
  public subscript(bit position: Int) -> Bool {
    get { (self >> position) & 1 != 0 }
    set { self = newValue ? self | (1 << position) : self & ~(1 << position) }
  }

  /// A field, right-aligned. On store, bits of the value beyond the field are dropped.
  @inlinable
  public subscript(bits range: ClosedRange<Int>) -> Self {
    get { (self >> range.lowerBound) & Self.lowBits(range.count) }
    set {
      let mask = Self.lowBits(range.count) << range.lowerBound
      self = (self & ~mask) | ((newValue << range.lowerBound) & mask)
    }
  }

  /// A value whose lowest `count` bits are one.
  @inlinable
  public static func lowBits(_ count: Int) -> Self {
    count >= Self.bitWidth ? ~0 : (1 << count) &- 1
  }
}
