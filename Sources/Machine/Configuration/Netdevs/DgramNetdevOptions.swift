/// `dgram`: Ethernet frames over a datagram socket, one in each datagram. The peer is another Nestling, QEMU, or any
/// program that exchanges frames like this.
public struct DgramNetdevOptions: NetdevOptions, Hashable {
  public var id: Identifier?
  public var local = SocketAddressOptions()
  public var remote = SocketAddressOptions()

  public init() {}

  public static let typeName = "dgram"
  public static let summary = "Frames over a datagram socket, Unix or UDP"
  public static let properties: [Property<Self>] =
    SocketAddressOptions.properties.map { $0.within(\.local, prefix: "local.") }
    + SocketAddressOptions.properties.map { $0.within(\.remote, prefix: "remote.") }

  // net_init_dgram (net/dgram.c), except for multicast groups.
  public static let rules: [PropertyRule<Self>] =
    [
      PropertyRule(otherwise: "remote.host is a multicast group, which is not supported") { !$0.remote.isMulticast },
      PropertyRule(otherwise: "dgram requires local= parameter") { $0.local != SocketAddressOptions() },
      PropertyRule(otherwise: "type=inet or type=unix requires remote parameter") {
        $0.remote != SocketAddressOptions()
      },
    ] + SocketAddressOptions.rules("local", \.local) + SocketAddressOptions.rules("remote", \.remote) + [
      PropertyRule(otherwise: "remote and local types must be the same") { $0.local.kind == $0.remote.kind }
    ]
}

extension SocketAddressOptions {
  /// Whether the host is an IPv4 multicast group: 224.0.0.0 to 239.255.255.255.
  fileprivate var isMulticast: Bool {
    guard kind == .inet, let first = host?.utf8.split(separator: UInt8(ascii: ".")).first,
      let number = NumberText.unsigned(first)
    else { return false }
    return (224...239).contains(number)
  }
}
