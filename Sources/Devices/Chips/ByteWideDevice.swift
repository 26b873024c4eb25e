import Hardware

/// A device with an 8-bit data path, as the ISA bus has them.
///
/// The bus splits a wider access into bytes, lowest address first; so does this. A byte that would
/// lie past the 64-bit space wraps, and the device answers it as any offset it does not decode.
public protocol ByteWideDevice: BusDevice {
  func readByte(at offset: UInt64) -> UInt8
  func writeByte(_ value: UInt8, at offset: UInt64)
}

extension ByteWideDevice {
  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<width.rawValue {
      value |= UInt64(readByte(at: offset &+ UInt64(index))) << (8 * index)
    }
    return value
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    for index in 0..<width.rawValue {
      writeByte(UInt8(truncatingIfNeeded: value >> (8 * index)), at: offset &+ UInt64(index))
    }
  }
}
