// Bits of a register by the numbers that its specification uses: `value[bit: 31]`, `value[bits: 2...4]`.

extension FixedWidthInteger where Self: UnsignedInteger {
  /// One bit, counted from the least significant.
  @inlinable
  public subscript(bit position: Int) -> Bool {
    get { (self >> position) & 1 != 0 }
    set { self = newValue ? self | (1 << position) : self & ~(1 << position) }
  }

  /// A field, right-aligned. Assignment drops the bits of the value that do not fit the field.
  @inlinable
  public subscript(bits range: ClosedRange<Int>) -> Self {
    get { (self >> range.lowerBound) & Self.lowBits(range.count) }
    set {
      let mask = Self.lowBits(range.count) << range.lowerBound
      self = (self & ~mask) | ((newValue << range.lowerBound) & mask)
    }
  }

  /// Returns a value whose lowest `count` bits are set.
  @inlinable
  public static func lowBits(_ count: Int) -> Self {
    count >= Self.bitWidth ? ~0 : (1 << count) &- 1
  }
}
