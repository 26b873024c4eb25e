import Linux

/// The reason why this host's KVM cannot run the machine.
public enum KVMError: Error, Hashable, Sendable {
  case call(SystemError)
  /// The kernel's version of the interface is not 12.
  case version(Int32)
  /// A required capability is missing. The value is its name in <linux/kvm.h>.
  case missingCapability(String)
  case tooManyProcessors(asked: Int, most: Int)
}
