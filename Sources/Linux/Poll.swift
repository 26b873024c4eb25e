import Glibc

/// Waiting for several descriptors at once: poll(2).
public enum Poll {
  /// Waits until one of them has input or has hung up.
  /// - Parameter milliseconds: at most so long; -1 for as long as it takes.
  /// - Returns: for each whether it has.
  public static func readable(_ descriptors: [Int32], milliseconds: Int32 = -1) -> [Bool] {
    var list = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    while true {
      // SAFETY: the count is the array's.
      let answer = unsafe poll(&list, nfds_t(list.count), milliseconds)
      if answer >= 0 || errno != EINTR { break }
    }
    return list.map { $0.revents != 0 }
  }

  /// Waits until a write would not wait, or fail.
  /// - Parameter milliseconds: at most so long.
  public static func writable(_ descriptor: Int32, milliseconds: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
    // SAFETY: one element, as the count says.
    return unsafe poll(&entry, 1, milliseconds) > 0
  }
}
