import CLinux
import Glibc

/// The system calls that VFIO and iommufd need, in one place, so that a test can substitute its own kernel.
///
/// Every call returns the result of the C module: a value, or -errno.
public protocol SystemCalls: Sendable {
  func open(_ path: String, flags: Int32) -> Int32
  func close(_ descriptor: Int32)
  /// - Parameter argument: the request's structure; nil if it has none.
  func ioctl(_ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?) -> Int32
  /// Calls pread(2), or read(2) without an offset. May return fewer bytes than the buffer holds.
  func read(_ descriptor: Int32, at offset: UInt64?, into buffer: UnsafeMutableRawBufferPointer) -> Int
  /// Calls pwrite(2), or write(2) without an offset.
  func write(_ descriptor: Int32, at offset: UInt64?, from buffer: UnsafeRawBufferPointer) -> Int
  /// Maps the file shared (mmap(2)). Returns the address, or -errno.
  func map(_ descriptor: Int32, at offset: UInt64, size: Int, writable: Bool) -> Int
  func unmap(_ address: Int, size: Int)
  /// Returns the number of the device behind a file (st_rdev of fstat(2)); nil if the file is not a device file.
  func deviceNumber(of descriptor: Int32) -> (major: UInt32, minor: UInt32)?
}

/// The system calls of the real kernel.
public struct HostSystemCalls: SystemCalls {
  public init() {}

  public func open(_ path: String, flags: Int32) -> Int32 {
    // SAFETY: the path lives for the duration of the call.
    unsafe path.withCString { unsafe nestling_open($0, flags, 0) }
  }

  public func close(_ descriptor: Int32) { _ = Glibc.close(descriptor) }

  public func ioctl(_ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    // SAFETY: the caller passes the request's structure.
    unsafe nestling_ioctl(descriptor, request, argument)
  }

  public func read(_ descriptor: Int32, at offset: UInt64?, into buffer: UnsafeMutableRawBufferPointer) -> Int {
    while true {
      // SAFETY: the kernel writes within the buffer.
      let answer =
        if let offset {
          unsafe pread(descriptor, buffer.baseAddress, buffer.count, Int(truncatingIfNeeded: offset))
        } else {
          unsafe Glibc.read(descriptor, buffer.baseAddress, buffer.count)
        }
      if answer >= 0 { return answer }
      if errno != EINTR { return -Int(errno) }
    }
  }

  public func write(_ descriptor: Int32, at offset: UInt64?, from buffer: UnsafeRawBufferPointer) -> Int {
    while true {
      // SAFETY: the kernel reads within the buffer.
      let answer =
        if let offset {
          unsafe pwrite(descriptor, buffer.baseAddress, buffer.count, Int(truncatingIfNeeded: offset))
        } else {
          unsafe Glibc.write(descriptor, buffer.baseAddress, buffer.count)
        }
      if answer >= 0 { return answer }
      if errno != EINTR { return -Int(errno) }
    }
  }

  public func map(_ descriptor: Int32, at offset: UInt64, size: Int, writable: Bool) -> Int {
    let protection = writable ? PROT_READ | PROT_WRITE : PROT_READ
    // SAFETY: the kernel chooses an unused range.
    let answer = unsafe mmap(nil, size, protection, MAP_SHARED, descriptor, Int(truncatingIfNeeded: offset))
    guard let answer = unsafe answer, unsafe answer != MAP_FAILED else { return -Int(errno) }
    return Int(bitPattern: answer)
  }

  public func unmap(_ address: Int, size: Int) {
    // SAFETY: the range is what `map` returned, and its owner no longer uses it.
    _ = unsafe munmap(UnsafeMutableRawPointer(bitPattern: address), size)
  }

  public func deviceNumber(of descriptor: Int32) -> (major: UInt32, minor: UInt32)? {
    var status = stat()
    // SAFETY: the structure lives for the duration of the call.
    guard unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFCHR else { return nil }
    // Decode it as gnu_dev_major(3) and gnu_dev_minor(3) do.
    let number = UInt64(status.st_rdev)
    return (
      UInt32(truncatingIfNeeded: number >> 8 & 0xfff | number >> 32 & ~0xfff),
      UInt32(truncatingIfNeeded: number & 0xff | number >> 12 & ~0xff)
    )
  }
}
