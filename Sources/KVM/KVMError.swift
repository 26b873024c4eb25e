import Linux

/// The reason why this host's KVM cannot run the machine.
public enum KVMError: Error, Hashable, Sendable, CustomStringConvertible {
  case call(SystemError)
  /// The kernel's version of the interface is not 12.
  case version(Int32)
  /// A required capability is missing. The value is its name in <linux/kvm.h>.
  case missingCapability(String)
  case tooManyProcessors(asked: Int, most: Int)

  public var description: String {
    switch self {
    case .call(let error): error.description
    case .version(let version): "KVM's API version is \(version), but must be 12"
    case .missingCapability(let name): "this kernel's KVM lacks \(name)"
    case .tooManyProcessors(let asked, let most): "\(asked) CPUs requested, but KVM here supports at most \(most)"
    }
  }
}
