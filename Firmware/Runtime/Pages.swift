/// Memory that kernels take page by page and never give back: from 32 MiB, where a machine of 64 MiB has RAM and no
/// loader has put anything.

enum Pages {
  static let size: UInt64 = 4096
  static let largeSize: UInt64 = 2 << 20
  nonisolated(unsafe) private static var next: UInt64 = 32 << 20

  /// A page of zeros.
  static func take() -> UInt64 { take(size) }

  /// So many bytes of zeros, aligned to as many: a power of two.
  static func take(_ count: UInt64) -> UInt64 {
    let start = reserve(count)
    fill(start, count, with: 0)
    return start
  }

  /// As many bytes of anything: where instructions are emulated, zeros for large pages take seconds.
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
