/// A build option of the host's kernel, from the kernel's configuration file.
public struct KernelOption: Hashable, Sendable {
  public enum State: Hashable, Sendable {
    case builtIn
    case module
    case missing
  }

  public let name: String
  public let state: State

  /// The options that passthrough needs.
  public static let names = [
    "CONFIG_KVM", "CONFIG_INTEL_IOMMU", "CONFIG_IRQ_REMAP", "CONFIG_IOMMUFD", "CONFIG_VFIO", "CONFIG_VFIO_PCI",
    "CONFIG_VFIO_DEVICE_CDEV",
  ]

  /// - Parameter text: a kernel's configuration file, with lines such as `CONFIG_KVM=m`.
  static func read(_ text: String) -> [KernelOption] {
    var states: [Substring: State] = [:]
    for line in text.split(separator: "\n") {
      let parts = line.split(separator: "=", maxSplits: 1)
      guard parts.count == 2, parts[0].hasPrefix("CONFIG_") else { continue }
      if parts[1] == "y" { states[parts[0]] = .builtIn }
      if parts[1] == "m" { states[parts[0]] = .module }
    }
    return names.map { KernelOption(name: $0, state: states[$0[...]] ?? .missing) }
  }
}
