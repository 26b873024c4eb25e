import CLinux
import Glibc
import Linux

/// An open file that answers ioctls: `/dev/iommu` or a VFIO device. It is closed with its last reference.
public final class KernelFile: Sendable {
  let calls: any SystemCalls
  public let descriptor: Int32
  /// The path or the descriptor by which the file was opened, for messages.
  public let name: String
  /// The object that closes the file; nil if this object closes it.
  private let owner: PassedDescriptor?

  /// Opens for reading and writing.
  public init(opening path: String, calls: any SystemCalls) throws(SystemError) {
    self.calls = calls
    name = path
    owner = nil
    descriptor = try checked(calls.open(path, flags: O_RDWR), "open", path)
  }

  /// Takes ownership of a descriptor that is open already.
  public init(owning descriptor: Int32, calls: any SystemCalls) {
    self.calls = calls
    self.descriptor = descriptor
    owner = nil
    name = "fd \(descriptor)"
  }

  /// Shares an open file, which its last owner closes.
  public init(sharing file: PassedDescriptor, calls: any SystemCalls) {
    self.calls = calls
    owner = file
    descriptor = file.rawValue
    name = "fd \(descriptor)"
  }

  deinit { if owner == nil { calls.close(descriptor) } }

  /// The device's number; nil if the file is not a device file.
  public var deviceNumber: (major: UInt32, minor: UInt32)? { calls.deviceNumber(of: descriptor) }

  /// Sends a request with a structure, which the kernel reads and writes.
  /// - Parameter call: the request's name in the kernel's header.
  @discardableResult
  func request<Argument>(
    _ call: String, _ number: UInt32, _ argument: inout Argument
  ) throws(SystemError) -> Int32 {
    // SAFETY: the argument is this request's structure; only this module calls this.
    let answer = unsafe withUnsafeMutablePointer(to: &argument) { pointer in
      unsafe calls.ioctl(descriptor, number, UnsafeMutableRawPointer(pointer))
    }
    return try checked(answer, call, name)
  }

  /// Sends a request without a structure.
  @discardableResult
  func request(_ call: String, _ number: UInt32) throws(SystemError) -> Int32 {
    try checked(unsafe calls.ioctl(descriptor, number, nil), call, name)
  }

  /// Sends a request whose structure is followed by a list and states the size of both in its first field.
  @discardableResult
  func request<Header>(
    _ call: String, _ number: UInt32, _ argument: inout VariableRequest<Header>
  ) throws(SystemError) -> Int32 {
    // SAFETY: the kernel stays within the stated size, which is the buffer's.
    let answer = unsafe argument.withBytes { unsafe calls.ioctl(descriptor, number, $0) }
    return try checked(answer, call, name)
  }
}

/// Returns the value of a structure's first field: its own size.
func byteCount<Structure>(of type: Structure.Type) -> UInt32 { UInt32(MemoryLayout<Structure>.size) }
