/// The part of ACPI that the kernels need: finding a table by its signature. ACPI 6.5, 5.2.5 to 5.2.8.

enum ACPI {
  /// Signatures as they are in memory: `"APIC"` is 0x43495041.
  static let multipleAPIC: UInt32 = 0x4349_5041
  static let memoryMappedConfiguration: UInt32 = 0x4746_434d

  private static func sum(_ at: UInt64, _ count: UInt64) -> UInt8 {
    var sum: UInt8 = 0
    for offset in 0..<count { sum &+= load8(at + offset) }
    return sum
  }

  /// Finds the Root System Description Pointer, in the first KiB of the EBDA or from 0xE0000 on.
  private static func findPointer() -> UInt64? {
    let extended = UInt64(load16(0x40e)) << 4
    return search(extended, extended + 1024) ?? search(0xe0000, 0x100000)
  }

  private static func search(_ from: UInt64, _ to: UInt64) -> UInt64? {
    let signature: UInt64 = 0x2052_5450_2044_5352  // "RSD PTR "
    var at = from & ~15
    while at < to {
      if load64(at) == signature, sum(at, 20) == 0 { return at }
      at += 16
    }
    return nil
  }

  /// - Returns: the address of the table's header, whose length is the doubleword at 4; nil if there is none, or if a
  ///   checksum is wrong.
  static func find(_ signature: UInt32) -> UInt64? {
    guard let pointer = findPointer() else { return nil }
    let isExtended = load8(pointer + 15) >= 2 && load64(pointer + 24) != 0
    let root = isExtended ? load64(pointer + 24) : UInt64(load32(pointer + 16))
    let width: UInt64 = isExtended ? 8 : 4
    var at = root + 36
    while at + width <= root + UInt64(load32(root + 4)) {
      let table = isExtended ? load64(at) : UInt64(load32(at))
      if load32(table) == signature {
        return sum(table, UInt64(load32(table + 4))) == 0 ? table : nil
      }
      at += width
    }
    return nil
  }

  struct Processor {
    var apicIdentifier: UInt32
  }

  /// Calls `body` for each structure of the MADT (5.2.12): its type, address and length.
  static func forEachInterruptController(_ body: (UInt8, UInt64, UInt8) -> Void) -> Bool {
    guard let table = find(multipleAPIC) else { return false }
    let end = table + UInt64(load32(table + 4))
    var at = table + 44
    while at + 2 <= end {
      let length = load8(at + 1)
      if length < 2 { return false }
      body(load8(at), at, length)
      at += UInt64(length)
    }
    return true
  }

  /// Calls `body` with the APIC identifier of each enabled processor.
  static func forEachProcessor(_ body: (UInt32) -> Void) -> Bool {
    forEachInterruptController { type, at, _ in
      let enabled: UInt32 = 1
      switch type {
      case 0: if load32(at + 4) & enabled != 0 { body(UInt32(load8(at + 3))) }
      case 9: if load32(at + 8) & enabled != 0 { body(load32(at + 4)) }
      default: break
      }
    }
  }

  /// The base of the first I/O APIC.
  static var ioAPIC: UInt64? {
    var base: UInt64?
    _ = forEachInterruptController { type, at, _ in
      if type == 1, base == nil { base = UInt64(load32(at + 4)) }
    }
    return base
  }
}
