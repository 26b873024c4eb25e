/// The I/O APIC's registers: 82093AA, 3.1 and 3.2; the remappable format of an entry: VT-d 4.1, 5.1.5.1.

struct IOAPIC {
  let base: UInt64

  private static let masked: UInt32 = 1 << 16
  static let level: UInt32 = 1 << 15
  static let remoteIRR: UInt32 = 1 << 14

  func read(_ register: UInt32) -> UInt32 {
    store32(base, register)
    return load32(base + 0x10)
  }

  func write(_ register: UInt32, _ value: UInt32) {
    store32(base, register)
    store32(base + 0x10, value)
  }

  /// Returns an entry's low half: its vector, and the state of its interrupt.
  func state(_ pin: UInt32) -> UInt32 { read(0x10 + pin * 2) }

  /// Writes an entry in compatibility format, with fixed delivery to one processor.
  func redirect(pin: UInt32, to destination: UInt32, vector: UInt32, bits: UInt32 = 0, masked: Bool = false) {
    set(pin, low: vector | bits | (masked ? Self.masked : 0), high: destination << 24)
  }

  /// Writes an entry in remappable format, for an entry of the interrupt remapping table.
  func remap(pin: UInt32, index: UInt32, vector: UInt32, bits: UInt32 = 0, masked: Bool = false) {
    let low = vector | bits | (index >> 15) << 11 | (masked ? Self.masked : 0)
    set(pin, low: low, high: (index & 0x7fff) << 17 | 1 << 16)
  }

  func mask(pin: UInt32) { write(0x10 + pin * 2, state(pin) | Self.masked) }
  func unmask(pin: UInt32) { write(0x10 + pin * 2, state(pin) & ~Self.masked) }

  /// Writes both halves while the pin is masked, so that a half-written entry sends nothing.
  private func set(_ pin: UInt32, low: UInt32, high: UInt32) {
    write(0x10 + pin * 2, Self.masked)
    write(0x11 + pin * 2, high)
    write(0x10 + pin * 2, low)
  }
}
