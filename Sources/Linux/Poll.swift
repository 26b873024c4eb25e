import Glibc

/// Waits for several descriptors at once: poll(2).
public enum Poll {
  /// Waits until a descriptor has input or has hung up.
  /// - Parameter milliseconds: the longest time to wait; -1 for no limit.
  /// - Returns: for each descriptor, whether it has input or has hung up.
  public static func readable(_ descriptors: [Int32], milliseconds: Int32 = -1) -> [Bool] {
    var list = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    while true {
      // SAFETY: the count is the array's.
      let answer = unsafe poll(&list, nfds_t(list.count), milliseconds)
      if answer >= 0 || errno != EINTR { break }
    }
    return list.map { $0.revents != 0 }
  }

  /// Waits until a write would not block.
  /// - Parameter milliseconds: the longest time to wait; -1 for no limit.
  /// - Returns: whether a write returns at once, perhaps with an error.
  public static func writable(_ descriptor: Int32, milliseconds: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
    // SAFETY: the count is one, and so is the number of elements.
    return unsafe poll(&entry, 1, milliseconds) > 0
  }
}
