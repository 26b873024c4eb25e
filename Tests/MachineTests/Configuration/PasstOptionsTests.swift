import Testing

@testable import Machine

/// Translates the options of `-netdev passt` and `-netdev user` to arguments of passt.
@Suite struct PasstOptionsTests {
  private func assign(_ values: [(String, String)]) -> [PropertyAssignment] {
    values.map { PropertyAssignment(name: $0.0, value: $0.1) }
  }

  private func problem(_ values: [(String, String)], of type: any TypedOptions.Type) -> PropertyError? {
    do throws(PropertyError) {
      _ = try type.init(assign(values))
      return nil
    } catch {
      return error
    }
  }

  @Test func `each option of passt becomes passt's option, lists keep their order, and param comes last`() throws {
    let cases: [([(String, String)], String)] = [
      ([], ""),
      ([("quiet", "on"), ("vhost-user", "off"), ("tcp", "on"), ("ipv4", "on"), ("dhcp-dns", "on")], ""),
      ([("mtu", "1400"), ("address", "192.0.2.2"), ("netmask", "24")], "--mtu 1400 --address 192.0.2.2 --netmask 24"),
      ([("mac", "52:54:00:00:00:01"), ("gateway", "192.0.2.1")], "--mac-addr 52:54:00:00:00:01 --gateway 192.0.2.1"),
      ([("interface", "e0"), ("outbound", "192.0.2.3")], "--interface e0 --outbound 192.0.2.3"),
      ([("outbound-if4", "e4"), ("outbound-if6", "e6")], "--outbound-if4 e4 --outbound-if6 e6"),
      ([("dns", "192.0.2.9"), ("dns-forward", "192.0.2.8")], "--dns 192.0.2.9 --dns-forward 192.0.2.8"),
      ([("search", "b.example"), ("search", "a.example")], "--search b.example --search a.example"),
      ([("dhcp-dns", "off"), ("dhcp-search", "off")], "--no-dhcp-dns --no-dhcp-search"),
      ([("tcp", "off"), ("udp", "off"), ("icmp", "off")], "--no-tcp --no-udp --no-icmp"),
      ([("dhcp", "off"), ("ndp", "off"), ("dhcpv6", "off"), ("ra", "off")], "--no-dhcp --no-ndp --no-dhcpv6 --no-ra"),
      ([("ipv6", "off")], "--ipv4-only"), ([("ipv4", "off")], "--ipv6-only"),
      (
        [("param", "--trace"), ("tcp-ports", "22"), ("udp-ports", "53"), ("tcp-ports", "80:8080")],
        "--tcp-ports 22 --tcp-ports 80:8080 --udp-ports 53 --trace"
      ),
    ]
    for (values, arguments) in cases {
      let command = try PasstNetdevOptions(assign(values)).command
      #expect(command.program == "passt" && command.arguments.joined(separator: " ") == arguments, "\(values)")
    }
    #expect(try PasstNetdevOptions(assign([("path", "/opt/passt")])).command.program == "/opt/passt")
  }

  @Test func `user gets QEMU's addresses by default, and others from net, host, dns and dhcpstart`() throws {
    let cases: [([(String, String)], String)] = [
      ([], "--address 10.0.2.15 --netmask 24 --gateway 10.0.2.2"),
      (
        [("net", "192.168.76.9/24"), ("ipv6", "off")],
        "--address 192.168.76.15 --netmask 24 --gateway 192.168.76.2 --ipv4-only"
      ),
      ([("net", "10.1.0.0/16")], "--address 10.1.2.15 --netmask 16 --gateway 10.1.2.2"),
      (
        [("host", "10.0.2.254"), ("dns", "10.0.2.253"), ("dhcpstart", "10.0.2.9")],
        "--address 10.0.2.9 --netmask 24 --gateway 10.0.2.254 --dns-forward 10.0.2.253 --no-dhcp-dns"
      ),
      ([("ipv4", "off"), ("dnssearch", "a.example")], "--ipv6-only --search a.example"),
      (
        [("ipv4", "off"), ("hostfwd", "tcp::2222-:22"), ("hostfwd", "udp:127.0.0.1:53-10.0.2.15:5353")],
        "--ipv6-only --tcp-ports 2222:22 --udp-ports 127.0.0.1/53:5353"
      ),
      ([("ipv4", "off"), ("hostfwd", "::1-:65535")], "--ipv6-only --tcp-ports 1:65535"),
    ]
    for (values, arguments) in cases {
      let command = try UserNetdevOptions(assign(values)).command
      #expect(command.program == "passt" && command.arguments.joined(separator: " ") == arguments, "\(values)")
    }
  }

  @Test func `malformed forwards and networks are errors`() {
    let forwards = [
      "", "tcp", "tcp::22", "tcp::22-22", "sctp::1-:2", "tcp::0-:22", "tcp::22-:65536", "tcp:localhost:1-:2",
      "tcp::1-:2:3",
      "tcp:1.2.3:1-:2", "tcp::1-1.2.3.256:2", "unix:/a-:2",
    ]
    for text in forwards {
      #expect(
        problem([("hostfwd", text)], of: UserNetdevOptions.self)
          == .value(name: "hostfwd", text: text, .notHostForward), "\(text)")
    }
    for text in ["10.0.2.0", "10.0.2.0/3", "10.0.2.0/31", "10.0.2/24", "10.0.2.0/24/1", "+1.0.0.0/8"] {
      #expect(
        problem([("net", text)], of: UserNetdevOptions.self) == .value(name: "net", text: text, .notIPv4Network),
        "\(text)")
    }
  }

  @Test func `addresses must fit the network, and a forward must lead to the guest's`() {
    let cases: [([(String, String)], String)] = [
      ([("host", "10.0.3.2")], "host is not an address of net"),
      ([("dns", "10.0.1.3")], "dns is not an address of net"),
      ([("net", "10.1.0.0/16"), ("dhcpstart", "10.0.2.15")], "dhcpstart is not an address of net"),
      ([("host", "10.0.2.3"), ("dns", "10.0.2.3")], "host, dns and dhcpstart must differ"),
      ([("host", "10.0.2.15")], "host, dns and dhcpstart must differ"),
      ([("ipv4", "off"), ("ipv6", "off")], "ipv4 and ipv6 are both off"),
      (
        [("hostfwd", "tcp::1-:1"), ("hostfwd", "tcp::2222-10.0.2.16:22")],
        "hostfwd leads to the guest's address only, which is 10.0.2.15 (dhcpstart)"
      ),
    ]
    for (values, text) in cases { #expect(problem(values, of: UserNetdevOptions.self) == .rule(text), "\(values)") }
    #expect(
      problem([("dhcpstart", "10.0.2.16"), ("hostfwd", "tcp::2-10.0.2.16:2")], of: UserNetdevOptions.self) == nil)
    #expect(
      problem([("ipv4", "off"), ("ipv6", "off")], of: PasstNetdevOptions.self) == .rule("ipv4 and ipv6 are both off"))
  }

  @Test(arguments: ["tftp", "smb", "hostname", "guestfwd", "ipv6-net", "restrict"])
  func `what passt cannot do for user is refused by name`(name: String) {
    guard case .value(name, "on", .refused)? = problem([(name, "on")], of: UserNetdevOptions.self) else {
      Issue.record("\(name) is not refused")
      return
    }
  }

  @Test(arguments: ["fqdn", "map-host-loopback", "map-guest-addr", "dns-host", "freebind", "vhost-user"])
  func `what Debian's passt cannot do is refused by name`(name: String) {
    guard case .value(name, "on", .refused)? = problem([(name, "on")], of: PasstNetdevOptions.self) else {
      Issue.record("\(name) is not refused")
      return
    }
  }

  @Test func `a failure's reason is getopt's line, or the last one that passt does not always print`() {
    let usual = ["Failed to send 47 bytes to syslog", "Don't run as root. Changing to nobody..."]
    #expect(ProgramFailure.reason(in: usual, of: "passt") == nil)
    #expect(ProgramFailure.reason(in: usual + ["Bad thing", usual[0]], of: "passt") == "Bad thing")
    let usage = ["passt: unrecognized option '--x'", "Usage: passt [OPTION]..."]
    #expect(ProgramFailure.reason(in: usage, of: "/opt/passt") == usage[0])
  }
}
