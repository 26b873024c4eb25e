// The way down through paging structures of 64-bit x86's shape: tables of 512 entries of eight bytes, an entry's bits
// 51:12 the next table's address. One call of the memory for all levels that need no second look: a walk through
// RAM that nothing holds in a cache costs as much in calls, otherwise, as in loads.

/// The entry at which a descent came to its end.
public struct PagingPosition: Hashable, Sendable {
  /// Of the entry, physical.
  public let address: UInt64
  /// nil where it is not in RAM.
  public let entry: UInt64?
  /// Of the table it is in: 1 for the last.
  public let level: Int

  @inlinable @inline(__always)
  public init(address: UInt64, entry: UInt64?, level: Int) {
    self.address = address
    self.entry = entry
    self.level = level
  }
}

extension PhysicalMemory {
  /// Follows `input` down from `table`, over every entry that has all bits of `mustHave` and none of `mustNotHave`, and
  /// reads each once.
  /// - Parameters:
  ///   - table: the first table's address, a multiple of 4096.
  ///   - level: the first table's level, 1 to 5; at level N bits 9N+11...9N+3 of `input` are the index.
  /// - Returns: the first entry that is not followed; at level 1, whatever it holds.
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
