/// The options of a `-netdev`: the host's end of a network device. Names and defaults are QEMU's (qapi/net.json).
public protocol NetdevOptions: QOMOptions {
  /// The open files that the options name.
  var descriptors: [DescriptorReference] { get set }
  /// The character device whose host's end the netdev takes over.
  var chardev: Identifier? { get }
  /// Whether another process maps the guest's RAM for the netdev.
  static var needsSharedMemory: Bool { get }
}

extension NetdevOptions {
  public var descriptors: [DescriptorReference] {
    get { [] }
    set {}
  }
  public var chardev: Identifier? { nil }
  public static var needsSharedMemory: Bool { false }
}

/// Every netdev type. A new type is a file in the folder `Netdevs`, its backend, and a line here.
public enum NetdevTypes {
  /// The compiler checks that each of them has `open`.
  static let opening: [any (NetdevOptions & NetdevOpening).Type] = [
    PasstNetdevOptions.self,
    StreamNetdevOptions.self,
    DgramNetdevOptions.self,
    TapNetdevOptions.self,
    UserNetdevOptions.self,
    VhostUserNetdevOptions.self,
  ]

  public static let all: [any NetdevOptions.Type] = opening.map { $0 }

  public static func named(_ name: String) -> (any NetdevOptions.Type)? {
    all.first { $0.typeName == name || $0.typeAliases.contains(name) }
  }
}
