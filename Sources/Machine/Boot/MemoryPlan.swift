/// The RAM that a boot has not claimed yet. It keeps the kernel, the initrd and boot data from overlapping.
struct MemoryPlan {
  /// The free ranges, in the order of their addresses. None of them is empty.
  private(set) var free: [Range<UInt64>]

  init(free: [Range<UInt64>]) { self.free = free }

  /// Claims exactly this range.
  /// - Returns: false if a part of the range is not free.
  mutating func claim(_ range: Range<UInt64>) -> Bool {
    if range.isEmpty { return true }
    guard let index = free.firstIndex(where: { $0.lowerBound <= range.lowerBound && range.upperBound <= $0.upperBound })
    else { return false }
    take(range, from: index)
    return true
  }

  /// Claims `size` bytes as high as possible.
  /// - Parameters:
  ///   - alignment: a power of two.
  ///   - limit: the bytes must end at or below this address.
  mutating func takeHighest(_ size: UInt64, alignment: UInt64, below limit: UInt64) -> UInt64? {
    for index in free.indices.reversed() {
      let end = min(free[index].upperBound, limit)
      guard end >= size else { continue }
      let start = (end - size) & ~(alignment - 1)
      guard start >= free[index].lowerBound else { continue }
      take(start..<start + size, from: index)
      return start
    }
    return nil
  }

  /// Claims `size` bytes as low as possible.
  /// - Parameters:
  ///   - alignment: a power of two.
  ///   - bounds: the bytes must be within this range.
  mutating func takeLowest(_ size: UInt64, alignment: UInt64, within bounds: Range<UInt64>) -> UInt64? {
    for index in free.indices {
      let (padded, overflow) = max(free[index].lowerBound, bounds.lowerBound).addingReportingOverflow(alignment - 1)
      if overflow { return nil }
      let start = padded & ~(alignment - 1)
      let end = min(free[index].upperBound, bounds.upperBound)
      guard start <= end, size <= end - start else { continue }
      take(start..<start + size, from: index)
      return start
    }
    return nil
  }

  /// Returns the largest size that `takeHighest` could still claim.
  func largest(alignment: UInt64, below limit: UInt64) -> UInt64 {
    var largest: UInt64 = 0
    for range in free {
      let (padded, overflow) = range.lowerBound.addingReportingOverflow(alignment - 1)
      let start = padded & ~(alignment - 1)
      let end = min(range.upperBound, limit)
      if !overflow, start < end { largest = max(largest, end - start) }
    }
    return largest
  }

  private mutating func take(_ range: Range<UInt64>, from index: Int) {
    let old = free[index]
    let left = [old.lowerBound..<range.lowerBound, range.upperBound..<old.upperBound].filter { !$0.isEmpty }
    free.replaceSubrange(index...index, with: left)
  }
}
