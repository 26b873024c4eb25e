import Hardware

/// The input's bytes as a small program. Each choice takes one byte; each value takes a byte for its form and the bytes
/// that the form needs. A changed byte therefore often changes one step and keeps the others. After the end, all bytes
/// are zero.
struct FuzzInput {
  private let bytes: [UInt8]
  private var position = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  var isEmpty: Bool { position >= bytes.count }

  mutating func byte() -> UInt8 {
    guard position < bytes.count else { return 0 }
    defer { position += 1 }
    return bytes[position]
  }

  mutating func little(_ count: Int) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<count { value |= UInt64(byte()) << UInt64(8 * index) }
    return value
  }

  mutating func word() -> UInt16 { UInt16(truncatingIfNeeded: little(2)) }

  /// Returns 0 to `count` - 1; `count` is at most 256.
  mutating func choice(_ count: Int) -> Int { Int(byte()) % count }

  mutating func pick<Element>(_ list: [Element]) -> Element { list[choice(list.count)] }

  mutating func width() -> AccessWidth { AccessWidth.allCases[choice(4)] }

  /// Returns a 64-bit number that is meaningful more often than a random one.
  mutating func value() -> UInt64 {
    switch choice(12) {
    case 0: 0
    case 1: .max
    case 2: 1 << (little(1) & 63)
    case 3: little(1)
    case 4: little(2)
    case 5: little(4)
    case 6: little(8)
    case 7: ~little(1)
    case 8: little(4) << 32
    case 9: address() | little(2) & 0xfff
    case 10: little(1) << 56 | little(1)
    default: 1 << (little(1) & 63) | 1 << (little(1) & 63)
    }
  }

  /// Returns the address of a page, usually in RAM.
  mutating func address() -> UInt64 {
    let page = byte()
    switch page {
    case 0xff: return little(8)
    case 0xfe: return 0xfee0_0000 | little(2) << 4
    case 0xfd: return 0xfed9_0000
    case 0xfc: return (1 << (little(1) & 63)) &- 0x1000
    default: return UInt64(page % UInt8(FuzzMemory.pages)) << 12
    }
  }
}

/// The RAM of one input.
enum FuzzMemory {
  static let pages = 64
  static let size = pages << 12
}
