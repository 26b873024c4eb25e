import CLinux
import Glibc

/// A raw image whose bytes move directly between the file and guest memory, without a copy.
public final class ScatteredFile: Sendable {
  /// A range of guest physical addresses.
  public struct Segment: Hashable, Sendable {
    public let address: UInt64
    /// In bytes.
    public let count: Int

    public init(address: UInt64, count: Int) {
      self.address = address
      self.count = count
    }
  }

  public let path: String
  public let isReadOnly: Bool
  /// The size in bytes when the file was opened.
  public let size: UInt64
  let file: FileDescriptor
  public let memory: GuestMemory

  /// Opens an image: a regular file or a block device.
  public convenience init(opening path: String, readOnly: Bool, memory: GuestMemory) throws(SystemError) {
    try self.init(FileDescriptor(openingImage: path, readOnly ? O_RDONLY : O_RDWR), path, readOnly, memory)
  }

  /// Opens an image from an open descriptor, which it duplicates.
  /// - Parameter path: for messages.
  public convenience init(
    _ open: PassedDescriptor, named path: String, readOnly: Bool, memory: GuestMemory
  ) throws(SystemError) {
    let file = try FileDescriptor(duplicating: open.rawValue)
    try file.checkImage(path)
    try self.init(file, path, readOnly, memory)
  }

  private init(
    _ file: consuming FileDescriptor, _ path: String, _ readOnly: Bool, _ memory: GuestMemory
  ) throws(SystemError) {
    let end = lseek(file.rawValue, 0, SEEK_END)
    if end < 0 { throw SystemError("lseek", path, code: errno) }
    size = UInt64(end)
    self.file = file
    self.path = path
    self.memory = memory
    isReadOnly = readOnly
  }

  /// The present size in bytes.
  public var currentSize: UInt64 {
    get throws(SystemError) {
      let end = lseek(file.rawValue, 0, SEEK_END)
      if end < 0 { throw SystemError("lseek", path, code: errno) }
      return UInt64(end)
    }
  }

  /// Whether the image is a regular file, whose size can change, and not a block device.
  public var isRegular: Bool { get throws(SystemError) { try file.type == S_IFREG } }

  /// Changes the size of a regular file; new bytes read as zero.
  public func resize(to size: UInt64) throws(SystemError) {
    guard let size = Int(exactly: size) else { throw SystemError("ftruncate", path, code: EFBIG) }
    while ftruncate(file.rawValue, size) < 0 {
      if errno != EINTR { throw SystemError("ftruncate", path, code: errno) }
    }
  }

  /// Returns a copy of `count` bytes, or fewer at the end of the file.
  public func bytes(at offset: UInt64, count: Int) throws(SystemError) -> [UInt8] {
    guard let start = Int(exactly: offset) else { throw SystemError("read", path, code: EINVAL) }
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      // SAFETY: the count is the rest of the array.
      let answer = unsafe bytes.withUnsafeMutableBytes {
        unsafe pread(file.rawValue, $0.baseAddress! + done, count - done, start + done)
      }
      if answer < 0, errno == EINTR { continue }
      if answer < 0 { throw SystemError("read", path, code: errno) }
      if answer == 0 { break }
      done += answer
    }
    return Array(bytes[..<done])
  }

  public func read(at offset: UInt64, into segments: [Segment]) throws(SystemError) {
    try unsafe transfer(offset, segments, "read") { unsafe preadv($0, $1, $2, $3) }
  }

  public func write(at offset: UInt64, from segments: [Segment]) throws(SystemError) {
    try unsafe transfer(offset, segments, "write") { unsafe pwritev($0, $1, $2, $3) }
  }

  /// Waits until everything written has reached the disk.
  public func synchronize() throws(SystemError) {
    while fdatasync(file.rawValue) < 0 {
      if errno != EINTR { throw SystemError("fdatasync", path, code: errno) }
    }
  }

  /// Deallocates the range in the file system. The range then reads as zero.
  public func punchHole(at offset: UInt64, count: UInt64) throws(SystemError) {
    try range(offset, count) { nestling_punch_hole(file.rawValue, $0, $1) }
  }

  /// Makes the range read as zero and keeps its blocks allocated.
  public func zero(at offset: UInt64, count: UInt64) throws(SystemError) {
    try range(offset, count) { nestling_zero_range(file.rawValue, $0, $1) }
  }

  private func range(_ offset: UInt64, _ count: UInt64, _ call: (Int64, Int64) -> Int32) throws(SystemError) {
    guard let offset = Int64(exactly: offset), let count = Int64(exactly: count) else {
      throw SystemError("fallocate", path, code: EINVAL)
    }
    _ = try checked(call(offset, count), "fallocate", path)
  }

  /// Moves all bytes of the segments, in as many calls as the kernel needs.
  private func transfer(
    _ offset: UInt64, _ segments: [Segment], _ name: String,
    _ call: (Int32, UnsafePointer<iovec>, Int32, Int) -> Int
  ) throws(SystemError) {
    guard var offset = Int(exactly: offset) else { throw SystemError(name, path, code: EINVAL) }
    // IOV_MAX of Linux.
    let most = 1024
    var next = 0
    /// Bytes of segment `next` that have been moved.
    var done = 0
    while next < segments.count {
      if segments[next].count == 0 {
        next += 1
        continue
      }
      let parts = min(segments.count - next, most)
      let moved: Int
      do throws(SystemError) {
        moved = try unsafe memory.withVectors(of: segments[next..<next + parts], skipping: done, name) {
          let moved = unsafe call(file.rawValue, $0, $1, offset)
          return moved < 0 ? -Int(errno) : moved
        }
        if moved < 0 { throw SystemError(name, path, code: Int32(-moved)) }
      } catch {
        if error.code == EINTR { continue }
        throw error
      }
      // The file is shorter than when it was opened.
      if moved == 0 { throw SystemError(name, path, code: EIO) }
      offset += moved
      done += moved
      while next < segments.count, done >= segments[next].count {
        done -= segments[next].count
        next += 1
      }
    }
  }
}

extension GuestMemory {
  /// Calls a function with the host's addresses of segments.
  /// - Parameters:
  ///   - segments: at most IOV_MAX. They may come from the guest: EFAULT is thrown unless all of them are RAM.
  ///   - skipped: the number of bytes of the first segment to leave out; at most its size.
  ///   - name: the system call, for errors.
  func withVectors(
    of segments: ArraySlice<ScatteredFile.Segment>, skipping skipped: Int = 0, _ name: String,
    _ call: (UnsafePointer<iovec>, Int32) -> Int
  ) throws(SystemError) -> Int {
    // SAFETY: each pointer is checked to cover its segment; the list lives until the call returns.
    try unsafe withUnsafeTemporaryAllocation(of: iovec.self, capacity: segments.count) {
      list throws(SystemError) -> Int in
      var skipped = skipped
      for (index, segment) in segments.enumerated() {
        guard let base = unsafe pointer(segment.address, UInt64(bitPattern: Int64(segment.count))) else {
          throw SystemError(name, "guest memory", code: EFAULT)
        }
        unsafe list[index] = unsafe iovec(iov_base: base + skipped, iov_len: segment.count - skipped)
        skipped = 0
      }
      guard let first = list.baseAddress else { return 0 }
      return unsafe call(first, Int32(segments.count))
    }
  }
}
