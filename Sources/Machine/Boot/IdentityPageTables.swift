import Hardware

/// Page tables that map the first 4 GiB to themselves (Intel SDM, volume 3, 4.5), with 2 MiB pages:
/// not every CPU, and not every emulation of one, has 1 GiB pages.
enum IdentityPageTables {
  /// PML4, page-directory-pointer table, four page directories.
  static let size = 6 * pageSize
  private static let pageSize = 4096

  /// Present, writable, accessed: with the flag set, the CPU need not write to the tables.
  private static let table: UInt64 = 1 << 0 | 1 << 1 | 1 << 5
  /// Dirty and page size (a 2 MiB page) besides.
  private static let page: UInt64 = table | 1 << 6 | 1 << 7

  /// - Parameter address: page aligned, so that the tables can point to each other.
  static func make(at address: UInt64) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(size)
    func appendTable(_ entries: [UInt64]) {
      for entry in entries { bytes.append(littleEndian: entry) }
      bytes.append(contentsOf: repeatElement(0, count: pageSize - 8 * entries.count))
    }
    appendTable([address + UInt64(pageSize) | table])
    appendTable((0..<4).map { address + UInt64((2 + $0) * pageSize) | table })
    for directory: UInt64 in 0..<4 {
      appendTable((0..<512).map { directory << 30 | $0 << 21 | page })
    }
    return bytes
  }
}
