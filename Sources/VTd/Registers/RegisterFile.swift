import Hardware

/// The storage of the 4 KiB register page: values, and masks for software's writes.
///
/// Software should access a register by its full width or by 32-bit halves (VT-d 11.2). Other accesses work byte by
/// byte: every access succeeds and changes only the bytes that it addresses.
struct RegisterFile: Sendable {
  static let size = 0x1000

  private var values: [UInt32]
  private var writable: [UInt32]
  private var writeOneToClear: [UInt32]
  private let descriptions: [RegisterDescription]

  init(_ descriptions: [RegisterDescription]) {
    self.descriptions = descriptions
    values = [UInt32](repeating: 0, count: Self.size / 4)
    writable = values
    writeOneToClear = values
    for register in descriptions {
      for part in 0..<register.width / 4 {
        let word = register.offset / 4 + part
        writable[word] = UInt32(truncatingIfNeeded: register.writable >> (32 * part))
        writeOneToClear[word] = UInt32(truncatingIfNeeded: register.writeOneToClear >> (32 * part))
      }
    }
    reset()
  }

  mutating func reset() {
    for word in values.indices { values[word] = 0 }
    for register in descriptions {
      values[register.offset / 4] = UInt32(truncatingIfNeeded: register.reset)
      if register.width == 8 { values[register.offset / 4 + 1] = UInt32(truncatingIfNeeded: register.reset >> 32) }
    }
  }

  /// The 32 bits at an offset in bytes, which is a multiple of 4.
  subscript(doubleword offset: Int) -> UInt32 {
    get { values[offset / 4] }
    set { values[offset / 4] = newValue }
  }

  subscript(quadword offset: Int) -> UInt64 {
    get { UInt64(values[offset / 4]) | UInt64(values[offset / 4 + 1]) << 32 }
    set {
      values[offset / 4] = UInt32(truncatingIfNeeded: newValue)
      values[offset / 4 + 1] = UInt32(truncatingIfNeeded: newValue >> 32)
    }
  }

  /// Returns the value that software reads. Bytes beyond the page are zero.
  func read(offset: Int, width: Int) -> UInt64 {
    var result: UInt64 = 0
    for index in 0..<width where offset + index < Self.size {
      let address = offset + index
      let byte = UInt64(values[address / 4] >> (8 * UInt32(address % 4)) & 0xff)
      result |= byte << (8 * UInt64(index))
    }
    return result
  }

  /// Applies software's write to one 32-bit word. `lanes` selects the bits of the bytes that software writes.
  mutating func write(word: Int, value: UInt32, lanes: UInt32) {
    let changeable = writable[word] & lanes
    let cleared = writeOneToClear[word] & lanes & value
    values[word] = (values[word] & ~changeable | value & changeable) & ~cleared
  }
}
