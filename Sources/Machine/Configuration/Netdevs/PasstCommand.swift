/// The command that starts a passt (passt(1)) for a netdev. The backend adds the options of its descriptors.
public struct PasstCommand: Hashable, Sendable {
  /// A path, or a name that is looked up in PATH.
  public var program: String
  public var arguments: [String] = []

  public init(program: String = "passt") { self.program = program }

  mutating func add(_ option: String, _ value: String?) {
    if let value { arguments += [option, value] }
  }

  mutating func add(_ option: String, each values: [String]) {
    for value in values { arguments += [option, value] }
  }

  mutating func add(_ option: String, if isGiven: Bool) {
    if isGiven { arguments.append(option) }
  }

  /// Adds the option that switches off a version of IP. At most one of them is off.
  mutating func addVersions(ipv4: Bool, ipv6: Bool) {
    add("--ipv4-only", if: !ipv6)
    add("--ipv6-only", if: !ipv4)
  }
}

/// A netdev type whose backend is a passt.
protocol PasstStarting: NetdevOptions {
  var command: PasstCommand { get }
}
