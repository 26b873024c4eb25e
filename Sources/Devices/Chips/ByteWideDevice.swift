import Hardware

/// A device with an 8-bit data path, as on the ISA bus.
///
/// Splits wider accesses into bytes, lowest address first, as the bus does. Offsets past the 64-bit space wrap; the device
/// answers them like any offset that it does not decode.
public protocol ByteWideDevice: BusDevice {
  func readByte(at offset: UInt64) -> UInt8
  func writeByte(_ value: UInt8, at offset: UInt64)
}

extension ByteWideDevice {
  public func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    width.assemble(from: offset) { readByte(at: $0) }
  }

  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    width.split(value, from: offset) { writeByte($1, at: $0) }
  }
}
