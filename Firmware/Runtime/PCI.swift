/// Configuration space through both mechanisms: ports 0xCF8 and 0xCFC (PCI 3.0, 3.2.2.3.2), and the memory window in
/// the MCFG table (PCI Express, 7.2.2).

struct Function {
  let device: UInt32
  let number: UInt32
  var bus: UInt32 = 0

  var index: UInt32 { bus << 8 | device << 3 | number }

  private func select(_ register: UInt32) {
    portWrite32(0xcf8, 1 << 31 | index << 8 | register & 0xfc)
  }

  func readPort(_ register: UInt32) -> UInt32 {
    select(register)
    return portRead32(0xcfc)
  }

  func readPort16(_ register: UInt32) -> UInt16 {
    select(register)
    return portRead16(0xcfc + UInt16(register & 2))
  }

  func readPort8(_ register: UInt32) -> UInt8 {
    select(register)
    return portRead8(0xcfc + UInt16(register & 3))
  }

  func writePort(_ register: UInt32, _ value: UInt32) {
    select(register)
    portWrite32(0xcfc, value)
  }

  /// - Parameter window: the window for bus 0.
  func address(_ window: UInt64, _ register: UInt32) -> UInt64 {
    window + UInt64(index) << 12 + UInt64(register)
  }
}

enum EnhancedConfiguration {
  /// The window for bus 0, from the first entry of MCFG.
  static var window: UInt64? {
    guard let table = ACPI.find(ACPI.memoryMappedConfiguration), load32(table + 4) >= 60 else { return nil }
    return load64(table + 44)
  }

  /// The last bus of the first entry.
  static var lastBus: UInt8? {
    guard let table = ACPI.find(ACPI.memoryMappedConfiguration), load32(table + 4) >= 60 else { return nil }
    return load8(table + 55)
  }
}
