import CLinux
import Glibc

// Functions that open the files of options without blocking. A plain open(2) waits for the other end of a FIFO, and for
// the carrier of a serial line.

extension FileDescriptor {
  /// The file's type, one of the values of S_IFMT: S_IFREG for a regular file.
  var type: mode_t {
    get throws(SystemError) {
      var status = stat()
      // SAFETY: the structure outlives the call.
      if unsafe fstat(rawValue, &status) < 0 { throw SystemError("fstat", code: errno) }
      return status.st_mode & S_IFMT
    }
  }

  /// Whether no read or write waits: the file is non-blocking (O_NONBLOCK) and not on a disk.
  public var isNonBlocking: Bool {
    guard let type = try? type, type != S_IFREG, type != S_IFBLK else { return false }
    return fcntl(rawValue, F_GETFL) & O_NONBLOCK != 0
  }

  /// Makes reads and writes fail with EAGAIN instead of waiting. This acts on the open file, so other processes that
  /// share it are affected, too.
  public func makeNonBlocking() { _ = fcntl(rawValue, F_SETFL, fcntl(rawValue, F_GETFL) | O_NONBLOCK) }

  /// Opens a file with random access: a regular file or a block device. Refuses any other file.
  public init(openingImage path: String, _ flags: Int32) throws(SystemError) {
    let file = try FileDescriptor(opening: path, flags | O_NONBLOCK | O_NOCTTY)
    try file.checkImage(path)
    let set = fcntl(file.rawValue, F_GETFL)
    _ = fcntl(file.rawValue, F_SETFL, set & ~O_NONBLOCK)
    self = file
  }

  /// Throws unless the file has random access, as regular files and block devices have.
  func checkImage(_ path: String) throws(SystemError) {
    let type = try type
    guard type == S_IFREG || type == S_IFBLK else {
      if type == S_IFDIR { throw SystemError("open", path, code: EISDIR) }
      throw SystemError("open", path, code: EINVAL, cause: .notAnImage)
    }
  }

  /// Opens any file but a directory for reading. A read returns at once if the file has no bytes now.
  public init(openingSource path: String) throws(SystemError) {
    let file = try FileDescriptor(opening: path, O_RDONLY | O_NONBLOCK | O_NOCTTY)
    if try file.type == S_IFDIR { throw SystemError("open", path, code: EISDIR) }
    self = file
  }

  /// Opens or creates a file for output. A write that would wait for the reader fails with EAGAIN.
  /// - Parameters:
  ///   - flags: in addition to O_WRONLY and O_CREAT.
  ///   - patience: the limit of the wait for the FIFO's reader; nil to throw ENXIO at once.
  public init(openingOutput path: String, _ flags: Int32, patience: Patience? = nil) throws(SystemError) {
    while true {
      do {
        self = try FileDescriptor(
          opening: path, O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | flags, mode: 0o666)
        return
      } catch {
        guard error.code == ENXIO, Self.isFIFO(path) else { throw error }
        guard let patience else { throw SystemError("open", path, code: ENXIO, cause: .noReader) }
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

/// The limit of a wait for the other end of a FIFO or a connection. The wait is over when a given descriptor, a
/// signalfd for example, has input.
public struct Patience: Sendable {
  private let interruption: Int32?

  /// - Parameter interruption: the descriptor, open as long as this value is used; nil to wait forever.
  public init(until interruption: Int32?) { self.interruption = interruption }

  /// Waits for 50 ms, between two tries at a condition that poll(2) does not report.
  /// - Throws: EINTR when the wait is over.
  public func pause(_ call: String, _ operand: String) throws(SystemError) {
    let over = Poll.readable(interruption.map { [$0] } ?? [], milliseconds: 50)
    if over.first == true { throw Self.givenUp(call, operand) }
  }

  /// Waits until a write to the descriptor would not block.
  /// - Throws: EINTR when the wait is over.
  func wait(untilWritable descriptor: Int32, _ call: String, _ operand: String) throws(SystemError) {
    var list = [pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)]
    if let interruption { list.append(pollfd(fd: interruption, events: Int16(POLLIN), revents: 0)) }
    // SAFETY: the count is the array's.
    while unsafe poll(&list, nfds_t(list.count), -1) < 0, errno == EINTR {}
    if list.count > 1, list[1].revents != 0 { throw Self.givenUp(call, operand) }
  }

  /// Waits until the descriptor has input.
  /// - Throws: EINTR when the wait is over.
  public func wait(untilReadable descriptor: Int32, _ call: String, _ operand: String) throws(SystemError) {
    if Poll.readable((interruption.map { [$0] } ?? []) + [descriptor]).first == true, interruption != nil {
      throw Self.givenUp(call, operand)
    }
  }

  private static func givenUp(_ call: String, _ operand: String) -> SystemError {
    SystemError(call, operand, code: EINTR)
  }
}
