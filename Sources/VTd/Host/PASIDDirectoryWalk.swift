import Hardware

// The search for present PASID-table entries of a passed-through function (VT-d 3.4.3, 9.5, 9.6). Its requests never
// reach the unit, so the unit must find their entries itself.
//
// With caching mode (CAP.CM), software invalidates when it makes an entry present (VT-d 6.1). For a single PASID-table
// entry it uses a PASID-selective PASID-cache invalidation, as Linux does: the invalidation names the PASID, so the unit
// reads this one entry. Other invalidations also cover entries that have become present, but name none of them: those of
// a context entry or a root table that now points to entries which are already present (as a kernel does that takes over
// the tables of another one), and global and domain-selective ones. For these, the unit walks the PASID directory.
//
// A guest can make both the directory and the number of PASIDs large, and repeat the invalidation. So a walk reads at
// most 16,384 directory entries and the PASID tables below 512 of them, about 50,000 words, which takes about a
// millisecond. It happens once for a function and a batch of invalidations. Beyond that, a PASID is found only if an
// invalidation names it. Both limits are 512, so the walk finds 512 PASIDs even if each has a table of its own. Empty
// tables, and entries that are present but not valid, use up the limits as well.

/// The bounds of PASIDs of one function.
public enum PASIDLimit {
  /// The most PASIDs that are bound for a function.
  public static let bound = 512
  /// The most PASID tables that a walk reads.
  static let tables = 512
}

extension SourceLookup {
  /// Returns PASIDs whose entries have the P bit, in order. The entries may still be invalid.
  /// - Parameters:
  ///   - width: the width of the PASIDs to find.
  ///   - count: the most PASIDs to return.
  ///   - isKnown: whether a PASID need not be found.
  mutating func presentPASIDs(width: Int, count: Int, except isKnown: (UInt32) -> Bool) -> [UInt32] {
    let width = min(width, capabilities.pasidWidth)
    guard mode.enabled, width > 0, count > 0, case .scalable(let context)? = try? context(for: .untranslated, pasid: 1)
    else { return [] }
    let end: UInt32 = 1 << UInt32(width)
    var found: [UInt32] = []
    var tables = 0
    for index in 0..<min(context.directoryEntries, (end + 63) >> 6) {
      guard let entry = memory.loadUInt64(at: context.directoryPointer &+ UInt64(index) * 8), entry[bit: 0],
        entry & (0xffc | capabilities.pointerBitsBeyondHost) == 0
      else { continue }
      tables += 1
      guard tables <= PASIDLimit.tables else { return found }
      for pasid in index << 6..<min((index + 1) << 6, end) where pasid != 0 && !isKnown(pasid) {
        let address = entry & ~0xfff &+ UInt64(pasid & 0x3f) * 64
        guard memory.loadUInt64(at: address)?[bit: 0] == true else { continue }
        found.append(pasid)
        if found.count == count { return found }
      }
    }
    return found
  }
}
