import Devices
import Hardware
import KVM
import Linux
import PCI
import Passthrough
import VTd
import VhostUser

/// The reason why a machine does not start, cannot be reset, or cannot get a new device.
public enum StartError: Error, Hashable, Sendable {
  // These names let `Control` write texts for the errors of modules that it does not import.
  public typealias SystemError = Linux.SystemError
  public typealias KVMError = KVM.KVMError
  public typealias VhostUserError = VhostUser.VhostUserError

  case configuration(ConfigurationError)
  /// A device does not fit the machine.
  case refused(DeviceProblem)
  case kvm(device: String, KVMError)
  case memory(size: UInt64, SystemError)
  /// RAM does not fit below the limit of guest physical addresses on this host.
  case addressSpace(memorySize: UInt64, physicalAddressWidth: Int)
  /// An operation on a file that an option names failed.
  case file(option: String, SystemError)
  /// A `-netdev` cannot be opened.
  case netdev(typeName: String, id: Identifier?, NetdevOpenError)
  /// Another process or another option holds a lock on the image that excludes this use.
  case imageInUse(path: String, ImageLockError)
  case boot(BootError)
  case unit(UnitOptionError)
  case chardev(ChardevProblem)
  /// The guest's ACPI tables cannot be built.
  case tables(ACPIError)
  /// A disk's parameters are invalid.
  case disk(VirtioBlockParameters.Problem)
  /// A network device's parameters are invalid.
  case network(VirtioNetParameters.Problem)
  /// The netdev of a network device was removed while the device was being added.
  case netdevGone(NetdevUse)
  /// Another function already has the function's address on its bus.
  case addressInUse(RequesterID)
  /// The board or another device has some of the I/O ports of an isa-debug-exit.
  case portsInUse(first: UInt16, count: UInt16)
  /// The machine ended before the device was on its bus.
  case ended
  case passthrough(PassthroughError)
  case vhostUser(VhostUserProblem)
  case placement(ResourcePlacement.NoRoom)
  /// A hotplugged device does not fit the windows of its port.
  case window(WindowProblem)
  case system(SystemError)
}

/// The reason why a vhost-user device cannot be built.
public struct VhostUserProblem: Hashable, Sendable {
  public enum Reason: Error, Hashable, Sendable {
    /// No other process can map the guest's RAM.
    case privateMemory
    /// Behind the IOMMU, the device needs a back end that translates addresses (VIRTIO_F_ACCESS_PLATFORM).
    case noTranslation
    case backEnd(VhostUserError)
  }

  /// The device type.
  public let typeName: String
  public let reason: Reason
}

/// A BAR that does not fit the windows of a port.
public struct WindowProblem: Hashable, Sendable {
  /// The port's address.
  public let port: RequesterID
  public let bar: Int
  /// The BAR's size in bytes.
  public let size: UInt64
}

/// Evaluates an expression. If it throws, throws the converted error.
package func mapError<Value: ~Copyable, Inner: Error, Outer: Error>(
  _ value: @autoclosure () throws(Inner) -> Value, _ convert: (Inner) -> Outer
) throws(Outer) -> Value {
  do {
    return try value()
  } catch {
    throw convert(error)
  }
}
