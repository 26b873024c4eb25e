import Glibc

// Pairs of connected descriptors, for a program that this process starts.

extension FileDescriptor {
  /// Makes two connected stream sockets (socketpair(2)). The caller owns both.
  public static func socketPair() throws(SystemError) -> (near: Int32, far: Int32) {
    var ends: [Int32] = [-1, -1]
    // SAFETY: the array has room for both.
    let answer = unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends)
    if answer < 0 { throw SystemError("socketpair", code: errno) }
    return (ends[0], ends[1])
  }

  /// Makes a pipe (pipe(2)) whose reading end is non-blocking. The caller owns both ends.
  /// - Parameter anyUserWrites: whether another user may open the writing end, by its name in /proc.
  public static func pipe(anyUserWrites: Bool = false) throws(SystemError) -> (reader: Int32, writer: Int32) {
    var ends: [Int32] = [-1, -1]
    // SAFETY: the array has room for both.
    if unsafe Glibc.pipe(&ends) < 0 { throw SystemError("pipe", code: errno) }
    for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    _ = fcntl(ends[0], F_SETFL, O_NONBLOCK)
    if anyUserWrites { _ = fchmod(ends[1], 0o622) }
    return (ends[0], ends[1])
  }
}
