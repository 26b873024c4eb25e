import Hardware
import KVM
import Linux
import PCI
import VTd

/// Why a machine does not start. The description is one line.
public enum StartError: Error, Sendable, CustomStringConvertible {
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

  public var description: String {
    switch self {
    case .configuration(let error): "\(error)"
    case .refused(let problem): "\(problem)"
    case .kvm(let device, .call(let error)) where error.operand == device: "-accel kvm: \(error)"
    case .kvm(_, let error): "-accel kvm: \(error)"
    case .memory(let size, let error): "-m: \(size >> 20) MiB of RAM: \(error.reason)"
    case .addressSpace(let size, let width):
      "-m: \(size >> 20) MiB of RAM do not fit the \(width) address bits of this host's guests"
    case .file(let option, let error): "\(option): \(error)"
    case .imageInUse(let path, let error):
      "-drive: \(path): Failed to get \(error.lockName) lock: is the image in use, by another process or option?"
    case .boot(let error): "\(error)"
    case .unit(let error): "-device intel-iommu: \(error)"
    case .device(let kind, let problem): "-device \(kind): \(problem)"
    case .passthrough(let error): error.description
    case .placement(let error):
      if let bar = error.bar {
        "the BARs do not fit: \(error.address) BAR \(bar) of \(error.size) bytes"
      } else {
        "the windows of the ports do not fit: \(error.address) wants one of \(error.size) bytes"
      }
    case .window(let problem):
      "BAR \(problem.bar) of \(problem.size) bytes does not fit the windows of the port at \(problem.port)"
    case .system(let error): "\(error)"
    }
  }
}

/// A BAR that does not fit the windows of a port.
public struct WindowProblem: Hashable, Sendable {
  /// The port's address.
  public let port: RequesterID
  public let bar: Int
  /// The BAR's size in bytes.
  public let size: UInt64
}

extension ImageLockError {
  /// The lock that another user has, as QEMU names it.
  fileprivate var lockName: String {
    switch self {
    case .notGranted(let permission): "\"\(permission.name)\""
    case .notShared(let permission): "shared \"\(permission.name)\""
    case .unavailable, .system: "any"
    }
  }
}
