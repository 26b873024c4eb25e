import CLinux
import Glibc

/// The system calls that VFIO and iommufd are made of, in one place that a test can put its own kernel behind.
///
/// Every call answers as the C module's do: a value, or -errno.
public protocol SystemCalls: Sendable {
  func open(_ path: String, flags: Int32) -> Int32
  func close(_ descriptor: Int32)
  /// - Parameter argument: the structure that the request takes; nil for one without.
  func ioctl(_ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?) -> Int32
  /// pread(2), or read(2) without an offset: all of the buffer or fewer bytes.
  func read(_ descriptor: Int32, at offset: UInt64?, into buffer: UnsafeMutableRawBufferPointer) -> Int
  /// pwrite(2), or write(2).
  func write(_ descriptor: Int32, at offset: UInt64?, from buffer: UnsafeRawBufferPointer) -> Int
  /// mmap(2), shared. Answers the address, or -errno.
  func map(_ descriptor: Int32, at offset: UInt64, size: Int, writable: Bool) -> Int
  func unmap(_ address: Int, size: Int)
  /// Of the device that a file stands for (st_rdev of fstat(2)); nil for a file that is no device's.
  func deviceNumber(of descriptor: Int32) -> (major: UInt32, minor: UInt32)?
}

/// The kernel itself.
public struct HostSystemCalls: SystemCalls {
  public init() {}

  public func open(_ path: String, flags: Int32) -> Int32 {
    // SAFETY: the path lives for the duration of the call.
    unsafe path.withCString { unsafe nestling_open($0, flags, 0) }
  }

  public func close(_ descriptor: Int32) { _ = Glibc.close(descriptor) }

  public func ioctl(_ descriptor: Int32, _ request: UInt32, _ argument: UnsafeMutableRawPointer?) -> Int32 {
    // SAFETY: the caller gives the structure that the request names.
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
    // SAFETY: the kernel chooses the place; nothing is there yet.
    let answer = unsafe mmap(nil, size, protection, MAP_SHARED, descriptor, Int(truncatingIfNeeded: offset))
    guard let answer = unsafe answer, unsafe answer != MAP_FAILED else { return -Int(errno) }
    return Int(bitPattern: answer)
  }

  public func unmap(_ address: Int, size: Int) {
    // SAFETY: the range is what `map` answered, and its owner has let go of it.
    _ = unsafe munmap(UnsafeMutableRawPointer(bitPattern: address), size)
  }

  public func deviceNumber(of descriptor: Int32) -> (major: UInt32, minor: UInt32)? {
    var status = stat()
    // SAFETY: the structure lives for the duration of the call.
    guard unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFCHR else { return nil }
    // As gnu_dev_major(3) and gnu_dev_minor(3) take it apart.
    let number = UInt64(status.st_rdev)
    return (
      UInt32(truncatingIfNeeded: number >> 8 & 0xfff | number >> 32 & ~0xfff),
      UInt32(truncatingIfNeeded: number & 0xff | number >> 12 & ~0xff)
    )
  }
}
