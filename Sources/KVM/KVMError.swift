import Linux

/// Why a machine cannot be run by this host's KVM.
public enum KVMError: Error, Hashable, Sendable, CustomStringConvertible {
  case call(SystemError)
  /// The kernel speaks another version of the interface than 12.
  case version(Int32)
  /// A capability that there is no doing without, by its name in <linux/kvm.h>.
  case missingCapability(String)
  case tooManyProcessors(asked: Int, most: Int)

  public var description: String {
    switch self {
    case .call(let error): error.description
    case .version(let version): "KVM API version \(version), where 12 is needed"
    case .missingCapability(let name): "this kernel's KVM lacks \(name)"
    case .tooManyProcessors(let asked, let most): "\(asked) CPUs asked for, KVM here runs at most \(most)"
    }
  }
}
