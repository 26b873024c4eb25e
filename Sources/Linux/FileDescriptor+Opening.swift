import CLinux
import Glibc

// Opening what an option names: none of it waits in open(2), where a FIFO waits for its other end and a serial line for
// its carrier.

extension FileDescriptor {
  /// What kind of file it is: one of S_IFMT's values, S_IFREG for a regular file.
  var kind: mode_t {
    get throws(SystemError) {
      var status = stat()
      // SAFETY: the structure outlives the call.
      if unsafe fstat(rawValue, &status) < 0 { throw SystemError("fstat", code: errno) }
      return status.st_mode & S_IFMT
    }
  }

  /// Opens a file that is read at any place: a regular file or a block device. Anything else is refused.
  public init(openingImage path: String, _ flags: Int32) throws(SystemError) {
    let file = try FileDescriptor(opening: path, flags | O_NONBLOCK | O_NOCTTY)
    let kind = try file.kind
    guard kind == S_IFREG || kind == S_IFBLK else {
      if kind == S_IFDIR { throw SystemError("open", path, code: EISDIR) }
      throw SystemError("open", path, code: EINVAL, because: "neither a regular file nor a block device")
    }
    let set = fcntl(file.rawValue, F_GETFL)
    _ = fcntl(file.rawValue, F_SETFL, set & ~O_NONBLOCK)
    self = file
  }

  /// Opens a file of any kind but a folder that bytes come from. A read of one that has none now returns at once.
  public init(openingSource path: String) throws(SystemError) {
    let file = try FileDescriptor(opening: path, O_RDONLY | O_NONBLOCK | O_NOCTTY)
    if try file.kind == S_IFDIR { throw SystemError("open", path, code: EISDIR) }
    self = file
  }

  /// Opens a file that gets output, or makes it. A write that its other end does not take fails with EAGAIN.
  /// - Parameters:
  ///   - flags: beside O_WRONLY and O_CREAT.
  ///   - patience: as long as it lasts, a FIFO without a reader is waited for; nil for not at all, which is ENXIO.
  public init(openingOutput path: String, _ flags: Int32, patience: Patience? = nil) throws(SystemError) {
    while true {
      do {
        self = try FileDescriptor(
          opening: path, O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | flags, mode: 0o666)
        return
      } catch {
        guard error.code == ENXIO, Self.isFIFO(path) else { throw error }
        guard let patience else { throw SystemError("open", path, code: ENXIO, because: "a FIFO that nobody reads") }
        try patience.pause("open", path)
      }
    }
  }

  private static func isFIFO(_ path: String) -> Bool {
    var status = stat()
    // SAFETY: the structure outlives the call.
    return unsafe stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFIFO
  }
}

/// How long to wait for somebody at the host's end: until a descriptor has input, by which a person gives the wait up.
public struct Patience: Sendable {
  private let interruption: Int32?

  /// - Parameter interruption: open as long as this value is used; nil for a wait without an end.
  public init(until interruption: Int32?) { self.interruption = interruption }

  /// Waits a little, for what poll(2) does not tell of.
  /// - Throws: EINTR when it is given up.
  public func pause(_ call: String, _ operand: String) throws(SystemError) {
    let over = Poll.readable(interruption.map { [$0] } ?? [], milliseconds: 50)
    if over.first == true { throw Self.givenUp(call, operand) }
  }

  /// Waits until a write to the descriptor would not wait, or fail.
  /// - Throws: EINTR when it is given up.
  func wait(untilWritable descriptor: Int32, _ call: String, _ operand: String) throws(SystemError) {
    var list = [pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)]
    if let interruption { list.append(pollfd(fd: interruption, events: Int16(POLLIN), revents: 0)) }
    // SAFETY: the count is the array's.
    while unsafe poll(&list, nfds_t(list.count), -1) < 0, errno == EINTR {}
    if list.count > 1, list[1].revents != 0 { throw Self.givenUp(call, operand) }
  }

  /// Waits until the descriptor has input.
  /// - Throws: EINTR when it is given up.
  public func wait(untilReadable descriptor: Int32, _ call: String, _ operand: String) throws(SystemError) {
    if Poll.readable((interruption.map { [$0] } ?? []) + [descriptor]).first == true, interruption != nil {
      throw Self.givenUp(call, operand)
    }
  }

  private static func givenUp(_ call: String, _ operand: String) -> SystemError {
    SystemError(call, operand, code: EINTR)
  }
}
