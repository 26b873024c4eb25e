/// Guest physical memory as devices and the IOMMU access it: RAM, with checked bounds.
///
/// No address of a guest traps: accesses outside RAM return nil or false. The sized loads and stores also return nil or
/// false unless the address has natural alignment. Each is a single access: a load acquires, a store releases. Values are
/// little-endian, as on x86.
public protocol PhysicalMemory: AnyObject, Sendable {
  func loadUInt16(at address: UInt64) -> UInt16?
  func loadUInt32(at address: UInt64) -> UInt32?
  func loadUInt64(at address: UInt64) -> UInt64?
  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool
  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool
  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool

  /// Walks paging tables. A requirement of the protocol, so that a walk costs one dynamic call; the default
  /// implementation in `PagingTableWalk` uses `loadUInt64`.
  func walkTables(
    _ input: UInt64, from table: UInt64, level: Int, mustHave: UInt64, mustNotHave: UInt64
  ) -> PagingPosition

  /// Performs an atomic compare and exchange, for accessed and dirty bits.
  /// - Returns: the former value: `expected` if the exchange took place; nil outside RAM.
  func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64?

  /// Copies bytes from memory. Any alignment; the bytes are copied in no particular order.
  /// - Returns: false, with `bytes` unchanged, if any byte is not RAM.
  func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool

  /// Copies bytes to memory.
  /// - Returns: false, with memory unchanged, if any byte is not RAM.
  func write(_ bytes: RawSpan, to address: UInt64) -> Bool

  /// Returns whether all of `address..<address + count` is RAM.
  func contains(_ address: UInt64, count: UInt64) -> Bool
}

extension PhysicalMemory {
  /// Copies bytes to memory.
  /// - Returns: false, with memory unchanged, if any byte is not RAM.
  public func write(_ bytes: [UInt8], to address: UInt64) -> Bool {
    write(RawSpan(_elements: bytes.span), to: address)
  }
}
