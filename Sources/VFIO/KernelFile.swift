import CLinux
import Glibc
import Linux

/// An open file of the kernel's that answers requests: `/dev/iommu`, a device of VFIO. It is closed when its last
/// owner goes.
public final class KernelFile: Sendable {
  let calls: any SystemCalls
  public let descriptor: Int32
  /// What it was opened by, for messages.
  public let name: String
  /// Who closes it; nil for this object itself.
  private let owner: PassedDescriptor?

  /// Opens for reading and writing.
  public init(opening path: String, calls: any SystemCalls) throws(SystemError) {
    self.calls = calls
    name = path
    owner = nil
    descriptor = try checked(calls.open(path, flags: O_RDWR), "open", path)
  }

  /// Takes over a descriptor that somebody else opened.
  public init(owning descriptor: Int32, calls: any SystemCalls) {
    self.calls = calls
    self.descriptor = descriptor
    owner = nil
    name = "fd \(descriptor)"
  }

  /// Shares an open file, which is closed when its last owner goes.
  public init(sharing file: PassedDescriptor, calls: any SystemCalls) {
    self.calls = calls
    owner = file
    descriptor = file.rawValue
    name = "fd \(descriptor)"
  }

  deinit { if owner == nil { calls.close(descriptor) } }

  /// Of the device that it stands for; nil for a file that is no device's.
  public var deviceNumber: (major: UInt32, minor: UInt32)? { calls.deviceNumber(of: descriptor) }

  /// A request with a structure, which the kernel reads and writes.
  /// - Parameter call: the request's name in the kernel's header.
  @discardableResult
  func request<Argument>(
    _ call: String, _ number: UInt32, _ argument: inout Argument
  ) throws(SystemError) -> Int32 {
    // SAFETY: the argument is the structure of this request; the callers are this module's own.
    let answer = unsafe withUnsafeMutablePointer(to: &argument) { pointer in
      unsafe calls.ioctl(descriptor, number, UnsafeMutableRawPointer(pointer))
    }
    return try checked(answer, call, name)
  }

  /// A request without one.
  @discardableResult
  func request(_ call: String, _ number: UInt32) throws(SystemError) -> Int32 {
    try checked(unsafe calls.ioctl(descriptor, number, nil), call, name)
  }

  /// A request whose structure is followed by more, and says at its front how many bytes there are of both.
  @discardableResult
  func request<Header>(
    _ call: String, _ number: UInt32, _ argument: inout VariableRequest<Header>
  ) throws(SystemError) -> Int32 {
    // SAFETY: the kernel stays within the size that the structure says, which is the buffer's.
    let answer = unsafe argument.withBytes { unsafe calls.ioctl(descriptor, number, $0) }
    return try checked(answer, call, name)
  }
}

/// What the kernel's structures say first of themselves.
func byteCount<Structure>(of type: Structure.Type) -> UInt32 { UInt32(MemoryLayout<Structure>.size) }
