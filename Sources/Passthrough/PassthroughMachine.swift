import Hardware
import Linux

/// A machine that devices of the host are passed through to.
public protocol PassthroughMachine: AnyObject {
  /// The guest's RAM, which the devices access.
  var memory: GuestMemory { get }
  /// Maps BARs for the guest's CPUs; nil if every access of a CPU outside RAM is trapped.
  var deviceMemory: (any DeviceMemory)? { get }
  /// Registers the devices' files with the accelerator; nil if the accelerator does not need to know them.
  var hostDeviceFiles: (any HostDeviceRegistry)? { get }
}

/// Maps memory of devices, such as the BARs of passed-through devices, so that CPUs access it without an exit.
public protocol DeviceMemory: AnyObject, Sendable {
  /// Maps memory into the guest's address space. All three parameters are multiples of the page size.
  /// - Parameters:
  ///   - address: guest physical.
  ///   - hostAddress: must stay mapped as long as the returned object exists.
  /// - Returns: an object that unmaps the memory when it is released; nil if the memory cannot be mapped, so that the
  ///   CPUs' accesses go to the board.
  func map(_ address: UInt64, size: UInt64, hostAddress: UInt64) -> (any AnyObject & Sendable)?
}

/// The host devices whose DMA reaches the guest's memory. KVM must know them: how CPUs may cache that memory depends on
/// whether the DMA is coherent with the caches.
public protocol HostDeviceRegistry: AnyObject, Sendable {
  /// - Parameter descriptor: VFIO's device file. The device is not bound yet.
  func add(_ descriptor: Int32) throws(SystemError)
  /// Removes a device. Must be called before the descriptor is closed.
  func remove(_ descriptor: Int32)
}
