/// Memory that kernels take and never release. It starts at 32 MiB, where a machine of 64 MiB has RAM and no loader has
/// put anything.

enum Pages {
  static let size: UInt64 = 4096
  static let largeSize: UInt64 = 2 << 20
  nonisolated(unsafe) private static var next: UInt64 = 32 << 20

  /// Takes a page of zeros.
  static func take() -> UInt64 { take(size) }

  /// Takes zeroed memory, aligned to its size.
  /// - Parameter count: the size in bytes, a power of two.
  static func take(_ count: UInt64) -> UInt64 {
    let start = reserve(count)
    fill(start, count, with: 0)
    return start
  }

  /// Takes memory without clearing it, aligned to its size. Where the CPU is emulated, clearing a large page would take
  /// seconds.
  static func reserve(_ count: UInt64) -> UInt64 {
    let start = (next + count - 1) & ~(count - 1)
    next = start + count
    return start
  }

  static func fill(_ start: UInt64, _ count: UInt64, with value: UInt64) {
    var at = start
    while at < start + count {
      store64(at, value)
      at += 8
    }
  }
}
