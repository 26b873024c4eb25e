/// `user`: the host's network without privileges, with QEMU's names and default addresses (NetdevUserOptions,
/// qapi/net.json). QEMU uses libslirp for it; Nestling starts a passt, and refuses what passt has not.
///
/// IPv6 is passt's: the guest gets the host's addresses.
public struct UserNetdevOptions: NetdevOptions, Hashable {
  public var id: Identifier?
  public var ipv4 = true
  public var ipv6 = true
  public var network = IPv4Network(0x0a00_0200, prefixLength: 24)
  public var host: IPv4Address?
  /// An address that leads to the host's DNS server. Debian 12's passt answers from it even if the guest has asked the
  /// server at the server's own address, so DHCP names no server then.
  public var dns: IPv4Address?
  /// The guest's address, the only one that passt's DHCP server gives.
  public var start: IPv4Address?
  public var search: [String] = []
  public var forwards: [HostForward] = []

  public init() {}

  private static let noServer = "passt has no such server"
  private static let ownIPv6 = "passt gives the guest the host's IPv6 addresses; ipv6=off leaves IPv6 out"

  public static let typeName = "user"
  public static let summary = "The host's network without privileges, by the program passt"
  public static let properties = own + refused

  private static let own: [Property<Self>] = [
    Property("ipv4", \.ipv4, help: "IPv4"),
    Property("ipv6", \.ipv6, help: "IPv6, with the host's addresses"),
    Property("net", \.network, help: "The guest's IPv4 network"),
    Property("host", \.host, help: "The host's address in it (default: the 2nd)"),
    Property("dns", \.dns, help: "Address that leads to the host's DNS server; DHCP names none then"),
    Property("dhcpstart", \.start, help: "The guest's address (default: the 15th)"),
    Property("dnssearch", adding: \.search, help: "DNS search domain (repeatable)"),
    Property(
      "hostfwd", adding: \.forwards,
      help: "[tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT: lead a port of the host to the guest (repeatable)"),
    Property(
      "restrict", settled: false, because: "passt cannot isolate the guest", help: "Isolate the guest (always off)"),
  ]

  private static let refusals = [
    ("tftp", noServer), ("bootfile", noServer), ("tftp-server-name", noServer), ("smb", noServer),
    ("smbserver", noServer), ("ipv6-net", ownIPv6), ("ipv6-prefix", ownIPv6), ("ipv6-prefixlen", ownIPv6),
    ("ipv6-host", ownIPv6), ("ipv6-dns", ownIPv6), ("hostname", "passt's DHCP server gives no name"),
    ("domainname", "passt's DHCP server gives no domain; dnssearch= gives search domains"),
    ("guestfwd", "passt cannot lead addresses of the network to programs"),
  ]
  private static let refused = refusals.map { Property<Self>($0.0, refusedBecause: $0.1) }

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "ipv4 and ipv6 are both off") { $0.ipv4 || $0.ipv6 },
    PropertyRule(otherwise: "host is not an address of net") { $0.network.contains($0.hostAddress) },
    PropertyRule(otherwise: "dns is not an address of net") { options in
      options.dns.map { options.network.contains($0) } ?? true
    },
    PropertyRule(otherwise: "dhcpstart is not an address of net") { $0.network.contains($0.guestAddress) },
    PropertyRule(otherwise: "host, dns and dhcpstart must differ") {
      $0.hostAddress != $0.guestAddress && $0.dns != $0.hostAddress && $0.dns != $0.guestAddress
    },
    PropertyRule { (options) throws(PropertyError) in
      for forward in options.forwards where forward.guestAddress ?? options.guestAddress != options.guestAddress {
        throw .rule("hostfwd leads to the guest's address only, which is \(options.guestAddress.text) (dhcpstart)")
      }
    },
  ]

  var hostAddress: IPv4Address { host ?? network.address(0x0202) }
  var guestAddress: IPv4Address { start ?? network.address(0x020f) }
}

extension UserNetdevOptions: PasstStarting {
  var command: PasstCommand {
    var command = PasstCommand()
    if ipv4 {
      command.add("--address", guestAddress.text)
      command.add("--netmask", String(network.prefixLength))
      command.add("--gateway", hostAddress.text)
      command.add("--dns-forward", dns?.text)
      command.add("--no-dhcp-dns", if: dns != nil)
    }
    command.addVersions(ipv4: ipv4, ipv6: ipv6)
    command.add("--search", each: search)
    command.add("--tcp-ports", each: forwards.filter { $0.transport == .tcp }.map(\.passtRule))
    command.add("--udp-ports", each: forwards.filter { $0.transport == .udp }.map(\.passtRule))
    return command
  }
}
