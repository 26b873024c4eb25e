// Bits of a register by the numbers that its specification uses: `value[bit: 31]`, `value[bits: 2...4]`. The accessors
// are always inlined: most numbers are constants, and a field is then a shift and a mask.

extension FixedWidthInteger where Self: UnsignedInteger {
  /// One bit, counted from the least significant.
  @inlinable
  public subscript(bit position: Int) -> Bool {
    @inline(__always) get { (self >> position) & 1 != 0 }
    @inline(__always) set { self = newValue ? self | (1 << position) : self & ~(1 << position) }
  }

  /// A field, right-aligned. Assignment drops the bits of the value that do not fit the field.
  @inlinable
  public subscript(bits range: ClosedRange<Int>) -> Self {
    @inline(__always) get { (self >> range.lowerBound) & Self.lowBits(range.count) }
    @inline(__always) set {
      let mask = Self.lowBits(range.count) << range.lowerBound
      self = (self & ~mask) | ((newValue << range.lowerBound) & mask)
    }
  }

  /// One byte, counted from the least significant.
  @inlinable
  public subscript(byte index: some BinaryInteger) -> UInt8 {
    get { UInt8(truncatingIfNeeded: self >> (8 * index)) }
    set { self = self & ~(0xff << (8 * index)) | Self(newValue) << (8 * index) }
  }

  /// Returns a value whose lowest `count` bits are set.
  @inlinable
  public static func lowBits(_ count: Int) -> Self {
    count >= Self.bitWidth ? ~0 : (1 << count) &- 1
  }
}

// Little-endian fields in byte arrays: configuration space, tables, descriptors. An offset past the end traps, so
// callers pass constants or offsets that they have checked.

extension Array where Element == UInt8 {
  @inlinable
  public func load<Value: FixedWidthInteger & UnsignedInteger>(_ type: Value.Type, at offset: Int) -> Value {
    var value: Value = 0
    for index in 0..<Value.bitWidth / 8 {
      value |= Value(self[offset + index]) << (8 * index)
    }
    return value
  }

  @inlinable
  public mutating func store<Value: FixedWidthInteger & UnsignedInteger>(_ value: Value, at offset: Int) {
    for index in 0..<Value.bitWidth / 8 {
      self[offset + index] = value[byte: index]
    }
  }

  @inlinable
  public init<each Value: FixedWidthInteger & UnsignedInteger>(littleEndian values: repeat each Value) {
    self = []
    append(littleEndian: repeat each values)
  }

  /// Appends values one after the other, each with the number of bytes of its type.
  @inlinable
  public mutating func append<each Value: FixedWidthInteger & UnsignedInteger>(littleEndian values: repeat each Value) {
    for value in repeat each values {
      for index in 0..<value.bitWidth / 8 { append(value[byte: index]) }
    }
  }
}
