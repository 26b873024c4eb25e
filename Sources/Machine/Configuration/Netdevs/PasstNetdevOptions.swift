import Devices

/// `passt`: the host's network through a passt, which Nestling starts and ends. Names and defaults are those of QEMU's
/// NetdevPasstOptions (qapi/net.json); most become the option of passt with a similar name (net/passt.c).
public struct PasstNetdevOptions: NetdevOptions, Hashable {
  public var id: Identifier?
  public var path = "passt"
  public var mtu: UInt16?
  public var address: String?
  public var netmask: String?
  public var mac: MACAddress?
  public var gateway: String?
  public var interface: String?
  public var outbound: String?
  public var outboundInterface4: String?
  public var outboundInterface6: String?
  public var dns: String?
  public var search: [String] = []
  public var sendsDNS = true
  public var sendsSearch = true
  public var dnsForward: String?
  public var tcp = true
  public var udp = true
  public var icmp = true
  public var dhcp = true
  public var ndp = true
  public var dhcpv6 = true
  public var routerAdvertisements = true
  public var ipv4 = true
  public var ipv6 = true
  public var tcpPorts: [String] = []
  public var udpPorts: [String] = []
  public var parameters: [String] = []

  public init() {}

  /// Options of QEMU that need a later passt than Debian 12's.
  private static let later = ["fqdn", "map-host-loopback", "map-guest-addr", "dns-host", "freebind"]

  public static let typeName = "passt"
  public static let summary = "The host's network, by the program passt"
  public static let properties =
    own
    + later.map { Property($0, refusedBecause: "Debian 12's passt has no --\($0); param= passes it to a later one") }

  private static let own: [Property<Self>] = [
    Property("path", \.path, .notEmpty, help: "Name of the program in PATH, or its path"),
    Property(
      "quiet", settled: true, because: "Nestling shows only the error that ends passt",
      help: "No messages of passt (always on)"),
    Property(
      "vhost-user", settled: false, because: "Nestling moves frames over a socket",
      help: "Use vhost-user (always off)"),
    Property("mtu", \.mtu, help: "MTU for the guest, by DHCP and NDP"),
    Property("address", \.address, help: "The guest's IPv4 or IPv6 address (default: the host's)"),
    Property("netmask", \.netmask, help: "The guest's IPv4 mask, or its number of bits"),
    Property("mac", \.mac, help: "Source MAC address of passt's frames"),
    Property("gateway", \.gateway, help: "The guest's default gateway"),
    Property("interface", \.interface, help: "Host interface that addresses and routes come from"),
    Property("outbound", \.outbound, help: "Source address of the host's sockets"),
    Property("outbound-if4", \.outboundInterface4, help: "Host interface of IPv4 sockets"),
    Property("outbound-if6", \.outboundInterface6, help: "Host interface of IPv6 sockets"),
    Property("dns", \.dns, help: "DNS server for the guest (default: the host's)"),
    Property("search", adding: \.search, help: "DNS search domain (repeatable)"),
    Property("dhcp-dns", \.sendsDNS, help: "Give the guest DNS servers"),
    Property("dhcp-search", \.sendsSearch, help: "Give the guest DNS search domains"),
    Property("dns-forward", \.dnsForward, help: "Address whose DNS queries go to the host's DNS server"),
    Property("tcp", \.tcp, help: "TCP"),
    Property("udp", \.udp, help: "UDP"),
    Property("icmp", \.icmp, help: "ICMP echo"),
    Property("dhcp", \.dhcp, help: "DHCP server"),
    Property("ndp", \.ndp, help: "NDP"),
    Property("dhcpv6", \.dhcpv6, help: "DHCPv6 server"),
    Property("ra", \.routerAdvertisements, help: "Router advertisements"),
    Property("ipv4", \.ipv4, help: "IPv4"),
    Property("ipv6", \.ipv6, help: "IPv6"),
    Property("tcp-ports", adding: \.tcpPorts, help: "TCP ports to forward, as passt -t takes them (repeatable)"),
    Property("udp-ports", adding: \.udpPorts, help: "UDP ports to forward, as passt -u takes them (repeatable)"),
    Property("param", adding: \.parameters, help: "A further argument of passt (repeatable)"),
  ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "ipv4 and ipv6 are both off") { $0.ipv4 || $0.ipv6 }
  ]
}

extension PasstNetdevOptions: PasstStarting {
  var command: PasstCommand {
    var command = PasstCommand(program: path)
    command.add("--mtu", mtu.map { String($0) })
    command.add("--address", address)
    command.add("--netmask", netmask)
    command.add("--mac-addr", mac?.text)
    command.add("--gateway", gateway)
    command.add("--interface", interface)
    command.add("--outbound", outbound)
    command.add("--outbound-if4", outboundInterface4)
    command.add("--outbound-if6", outboundInterface6)
    command.add("--dns", dns)
    command.add("--search", each: search)
    command.add("--no-dhcp-dns", if: !sendsDNS)
    command.add("--no-dhcp-search", if: !sendsSearch)
    command.add("--dns-forward", dnsForward)
    command.add("--no-tcp", if: !tcp)
    command.add("--no-udp", if: !udp)
    command.add("--no-icmp", if: !icmp)
    command.add("--no-dhcp", if: !dhcp)
    command.add("--no-ndp", if: !ndp)
    command.add("--no-dhcpv6", if: !dhcpv6)
    command.add("--no-ra", if: !routerAdvertisements)
    command.addVersions(ipv4: ipv4, ipv6: ipv6)
    command.add("--tcp-ports", each: tcpPorts)
    command.add("--udp-ports", each: udpPorts)
    command.arguments += parameters
    return command
  }
}
