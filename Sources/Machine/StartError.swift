import Hardware
import KVM
import Linux
import PCI
import VTd

/// The reason why a machine does not start.
public enum StartError: Error, Hashable, Sendable {
  case configuration(ConfigurationError)
  /// A device does not fit the machine.
  case refused(DeviceProblem)
  case kvm(device: String, KVMError)
  case memory(size: UInt64, SystemError)
  /// RAM does not fit below the limit of guest physical addresses on this host.
  case addressSpace(memorySize: UInt64, physicalAddressWidth: Int)
  /// An operation on a file that an option names failed.
  case file(option: String, SystemError)
  /// Another process or another option holds a lock on the image that excludes this use.
  case imageInUse(path: String, ImageLockError)
  case boot(BootError)
  case unit(UnitOptionError)
  case device(kind: String, problem: String)
  case passthrough(PassthroughError)
  case placement(ResourcePlacement.NoRoom)
  /// A hotplugged device does not fit the windows of its port.
  case window(WindowProblem)
  case system(SystemError)
}

/// A BAR that does not fit the windows of a port.
public struct WindowProblem: Hashable, Sendable {
  /// The port's address.
  public let port: RequesterID
  public let bar: Int
  /// The BAR's size in bytes.
  public let size: UInt64
}
