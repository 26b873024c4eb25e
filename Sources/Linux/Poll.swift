import Glibc

/// Waits for several descriptors at once: poll(2). A signal that interrupts the wait starts it again.
public enum Poll {
  /// Waits until a descriptor has input or has hung up.
  /// - Parameter milliseconds: the longest time to wait; -1 for no limit.
  /// - Returns: for each descriptor, whether it has input or has hung up.
  public static func readable(_ descriptors: [Int32], milliseconds: Int32 = -1) -> [Bool] {
    var list = descriptors.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    _ = wait(&list, milliseconds)
    return list.map { $0.revents != 0 }
  }

  /// Waits until a write would not block.
  /// - Parameter milliseconds: the longest time to wait; -1 for no limit.
  /// - Returns: whether a write returns at once, perhaps with an error.
  public static func writable(_ descriptor: Int32, milliseconds: Int32) -> Bool {
    var list = [pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)]
    return wait(&list, milliseconds) > 0
  }

  /// - Returns: the number of descriptors with an event; -1 for an error.
  private static func wait(_ list: inout [pollfd], _ milliseconds: Int32) -> Int32 {
    while true {
      // SAFETY: the count is the array's.
      let answer = unsafe poll(&list, nfds_t(list.count), milliseconds)
      if answer >= 0 || errno != EINTR { return answer }
    }
  }
}
