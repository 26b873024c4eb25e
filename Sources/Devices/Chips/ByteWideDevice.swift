import Hardware

/// A device with an 8-bit data path, as on the ISA bus.
///
/// The default `read` and `write` split a wider access into bytes, lowest address first, as the ISA bus does. If an
/// access crosses the end of the 64-bit offset space, its remaining bytes are those at offset 0 and up.
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
