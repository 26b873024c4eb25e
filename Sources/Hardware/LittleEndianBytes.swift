// Little-endian fields in byte arrays: configuration space, tables, descriptors. An offset past the end traps, so callers
// pass constants or offsets that they have checked.

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
      self[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
    }
  }

  @inlinable
  public mutating func append<Value: FixedWidthInteger & UnsignedInteger>(littleEndian value: Value) {
    for index in 0..<Value.bitWidth / 8 {
      append(UInt8(truncatingIfNeeded: value >> (8 * index)))
    }
  }
}
