/// Guest physical memory as devices and the IOMMU see it: RAM, bounds-checked.
///
/// Nothing here traps on a guest's address: what is not RAM is nil or false. The numbered loads and
/// stores want natural alignment (else nil or false) and are single accesses, a load with acquire
/// and a store with release ordering. Values are little-endian, as on x86.
public protocol PhysicalMemory: AnyObject, Sendable {
  func loadUInt16(at address: UInt64) -> UInt16?
  func loadUInt32(at address: UInt64) -> UInt32?
  func loadUInt64(at address: UInt64) -> UInt64?
  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool
  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool
  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool

  /// As `walkTables` below does it by `loadUInt64`; in the protocol so that a memory does it in one call.
  func walkTables(
    _ input: UInt64, from table: UInt64, level: Int, mustHave: UInt64, mustNotHave: UInt64
  ) -> PagingPosition

  /// One atomic read-modify-write, for accessed and dirty bits.
  /// - Returns: what was there before: `expected` when the exchange took place.
  func compareExchangeUInt64(at address: UInt64, expected: UInt64, desired: UInt64) -> UInt64?

  /// Copies out of memory. Any alignment; no order among the bytes.
  /// - Returns: false where any byte is not RAM; then `bytes` is as it was.
  func read(from address: UInt64, into bytes: inout MutableRawSpan) -> Bool

  /// Copies into memory.
  /// - Returns: false where any byte is not RAM; then memory is as it was.
  func write(_ bytes: RawSpan, to address: UInt64) -> Bool

  /// Whether all of `address..<address + count` is RAM.
  func contains(_ address: UInt64, count: UInt64) -> Bool
}

extension PhysicalMemory {
  /// - Returns: false where any byte is not RAM; then memory is as it was.
  public func write(_ bytes: [UInt8], to address: UInt64) -> Bool {
    write(RawSpan(_elements: bytes.span), to: address)
  }
}
