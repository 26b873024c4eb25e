/// Guest physical memory as devices and the IOMMU access it: RAM, with checked bounds.
///
/// No address of a guest traps: accesses outside RAM return nil or false. The sized loads and stores also return nil or
/// false unless the address has natural alignment. Each is a single access: a load acquires, a store releases. Values
/// are little-endian, as on x86.
public protocol PhysicalMemory: AnyObject, Sendable {
  func loadUInt16(at address: UInt64) -> UInt16?
  func loadUInt32(at address: UInt64) -> UInt32?
  func loadUInt64(at address: UInt64) -> UInt64?
  func storeUInt16(_ value: UInt16, at address: UInt64) -> Bool
  func storeUInt32(_ value: UInt32, at address: UInt64) -> Bool
  func storeUInt64(_ value: UInt64, at address: UInt64) -> Bool

  /// Walks paging tables. This is a requirement of the protocol, so that a walk costs one dynamic call. The default
  /// implementation below uses `loadUInt64`.
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

// The walk through paging structures in the format of 64-bit x86: tables of 512 entries of eight bytes, whose bits
// 51:12 are the next table's address. One call to the memory covers all levels, because a call per level would cost
// about as much as a load that misses the caches.

/// The entry at which a walk ended.
public struct PagingPosition: Hashable, Sendable {
  /// The physical address of the entry.
  public let address: UInt64
  /// The entry; nil if its address is not in RAM.
  public let entry: UInt64?
  /// The level of the table that holds the entry; 1 is the last level.
  public let level: Int

  @inlinable @inline(__always)
  public init(address: UInt64, entry: UInt64?, level: Int) {
    self.address = address
    self.entry = entry
    self.level = level
  }
}

extension PhysicalMemory {
  /// Walks the tables for the address `input`. Continues at each entry that has all bits of `mustHave` and none of
  /// `mustNotHave`. Reads each entry once.
  /// - Parameters:
  ///   - table: the first table's address, a multiple of 4096.
  ///   - level: the first table's level, 1 to 5; at level N, bits 9N+11...9N+3 of `input` are the index.
  /// - Returns: the first entry at which the walk does not continue; at level 1, any entry.
  @inlinable @inline(__always)
  public func walkTables(
    _ input: UInt64, from table: UInt64, level: Int, mustHave: UInt64, mustNotHave: UInt64
  ) -> PagingPosition {
    var table = table
    var level = level
    while true {
      let index = input &>> UInt64(truncatingIfNeeded: 3 &+ 9 &* level) & 0x1ff
      let address = table | index &<< 3
      guard let entry = loadUInt64(at: address) else {
        return PagingPosition(address: address, entry: nil, level: level)
      }
      guard level > 1, entry & (mustHave | mustNotHave) == mustHave else {
        return PagingPosition(address: address, entry: entry, level: level)
      }
      table = entry & 0x000f_ffff_ffff_f000
      level &-= 1
    }
  }
}
