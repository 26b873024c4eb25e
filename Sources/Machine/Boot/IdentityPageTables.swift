import Hardware

/// Page tables that map the first 4 GiB to themselves (Intel SDM, volume 3, 4.5). They use 2 MiB pages, because some
/// CPUs and some emulators do not support 1 GiB pages.
enum IdentityPageTables {
  /// PML4, page-directory-pointer table, four page directories.
  static let size = 6 * pageSize
  private static let pageSize = 4096

  /// Present, writable, accessed. With the accessed flag set, the CPU does not need to write to the tables.
  private static let table: UInt64 = 1 << 0 | 1 << 1 | 1 << 5
  /// The same, and dirty and page size (a 2 MiB page).
  private static let page: UInt64 = table | 1 << 6 | 1 << 7

  /// - Parameter address: the guest physical address of the tables, page aligned. The tables refer to each other by it.
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
