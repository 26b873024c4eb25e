import Devices
import Testing

@testable import Machine

/// Reads the options of netdevs and of their devices, and checks that they fit the machine.
@Suite struct NetdevOptionsTests {
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

  @Test func `a stream needs the address of a unix or an inet socket, and no other address's members`() throws {
    let unix = [("addr.type", "unix"), ("addr.path", "/s")]
    let inet = [("addr.type", "inet"), ("addr.host", "127.0.0.1"), ("addr.port", "99")]
    #expect(try StreamNetdevOptions(assign(unix)).address.path == "/s")
    #expect(try StreamNetdevOptions(assign(inet)).address.port?.number == 99)
    let cases: [([(String, String)], String)] = [
      ([], "Parameter 'addr' is missing"),
      ([("addr.path", "/s")], "Parameter 'addr.type' is missing"),
      ([("addr.type", "unix")], "Parameter 'addr.path' is missing"),
      (Array(inet.prefix(1)), "Parameter 'addr.host' is missing"),
      (Array(inet.prefix(2)), "Parameter 'addr.port' is missing"),
      (unix + [("addr.port", "1")], "Parameter 'addr.port' is unexpected"),
      (inet + [("addr.path", "/s")], "Parameter 'addr.path' is unexpected"),
    ]
    for (values, text) in cases { #expect(problem(values, of: StreamNetdevOptions.self) == .rule(text), "\(values)") }
    for port in ["0", "65536"] {
      #expect(
        problem([("addr.port", port)], of: StreamNetdevOptions.self)
          == .value(name: "addr.port", text: port, .outOfRange(lowest: 1, highest: 65535)))
    }
    #expect(
      problem([("addr.type", "vsock")], of: StreamNetdevOptions.self)
        == .value(name: "addr.type", text: "vsock", .notOneOf(["unix", "inet"])))
    let long = String(repeating: "a", count: 108)
    #expect(
      problem([("addr.path", long)], of: StreamNetdevOptions.self)
        == .value(name: "addr.path", text: long, .tooLong(bytes: 107)))
  }

  @Test func `the host of a stream is an IPv4 address or localhost, and empty only for a server`() throws {
    func problem(_ host: String, _ server: String) -> PropertyError? {
      self.problem(
        [("addr.type", "inet"), ("addr.host", host), ("addr.port", "99"), ("server", server)],
        of: StreamNetdevOptions.self)
    }
    let refusal = PropertyError.rule(
      "addr.host must be an IPv4 address or localhost: host names are not resolved")
    for server in ["on", "off"] {
      for host in ["127.0.0.1", "localhost", "255.0.10.200"] { #expect(problem(host, server) == nil, "\(host)") }
      for host in ["host.example", "127.0.0", "127.0.0.256", "127.0.0.01", "1.2.3.4.5", "::1", " 127.0.0.1"] {
        #expect(problem(host, server) == refusal, "\(host)")
      }
    }
    #expect(problem("", "on") == nil && problem("", "off") == refusal)
  }

  @Test func `a dgram needs two addresses of one type, and no multicast group`() throws {
    let local = [("local.type", "unix"), ("local.path", "/a")]
    let remote = [("remote.type", "unix"), ("remote.path", "/b")]
    let inet = [("remote.type", "inet"), ("remote.host", "127.0.0.1"), ("remote.port", "1")]
    let group = [("remote.type", "inet"), ("remote.host", "230.0.0.1"), ("remote.port", "1")]
    let options = try DgramNetdevOptions(assign(local + remote))
    #expect(options.local.path == "/a" && options.remote.path == "/b")
    let cases: [([(String, String)], String)] = [
      (remote, "dgram requires local= parameter"),
      (local, "type=inet or type=unix requires remote parameter"),
      (local + inet, "remote and local types must be the same"),
      (local + remote.prefix(1), "Parameter 'remote.path' is missing"),
      (group, "remote.host is a multicast group, which is not supported"),
    ]
    for (values, text) in cases { #expect(problem(values, of: DgramNetdevOptions.self) == .rule(text), "\(values)") }
  }

  @Test func `only a client reconnects, and only one unit of time is given`() throws {
    let unix = [("addr.type", "unix"), ("addr.path", "/s")]
    let cases: [([(String, String)], String?)] = [
      ([("reconnect", "1")], nil), ([("reconnect-ms", "1")], nil), ([("server", "on")], nil),
      ([("reconnect", "1"), ("reconnect-ms", "1")], "'reconnect' and 'reconnect-ms' are mutually exclusive"),
      ([("server", "on"), ("reconnect", "1")], "'reconnect' option is incompatible with socket in server mode"),
      ([("server", "on"), ("reconnect-ms", "1")], "'reconnect-ms' option is incompatible with socket in server mode"),
    ]
    for (more, text) in cases {
      #expect(problem(unix + more, of: StreamNetdevOptions.self) == text.map { .rule($0) }, "\(more)")
    }
  }

  @Test func `vhost is on by itself, by vhostforce or by an open file, and its files belong to it`() throws {
    func options(_ values: [(String, String)]) throws -> TapNetdevOptions { try TapNetdevOptions(assign(values)) }
    let choices: [([(String, String)], Bool)] = [
      ([], false), ([("vhost", "off"), ("vhostforce", "on")], false), ([("vhost", "on")], true),
      ([("vhostforce", "on")], true),
    ]
    for (values, isOn) in choices { #expect(try options(values).usesVhost == isOn, "\(values)") }
    var both = try options([("fds", "5:net1"), ("vhostfds", "vhost0:8")])
    #expect(both.usesVhost)
    #expect(both.descriptors.map(\.text) == ["5", "net1", "vhost0", "8"])
    both.descriptors = both.descriptors.reversed()
    #expect(both.tapDescriptors.map(\.text) == ["8", "vhost0"])
    #expect(both.vhostDescriptors.map(\.text) == ["net1", "5"])
    let one = try options([("vhostfd", "9")])
    #expect(one.usesVhost && one.tapDescriptors.isEmpty)
    #expect(one.vhostDescriptors.map(\.number) == [9])
    let cases: [([(String, String)], String)] = [
      ([("vhost", "off"), ("vhostfd", "9")], "vhostfd(s)= is not valid without vhost"),
      ([("vhostfds", "8:9")], "vhostfds= is invalid if fds= wasn't specified"),
      ([("fd", "5"), ("vhostfds", "9")], "ifname=, queues=, fds= and vhostfds= are invalid with fd="),
      ([("fds", "5:6"), ("vhostfd", "9")], "ifname=, queues= and vhostfd= are invalid with fds="),
    ]
    for (values, text) in cases { #expect(problem(values, of: TapNetdevOptions.self) == .rule(text), "\(values)") }
  }

  @Test func `a tap takes an interface or open files, and no script or limit`() throws {
    let named = try TapNetdevOptions(
      assign([
        ("ifname", "tap7"), ("queues", "4"), ("script", "no"), ("downscript", "no"), ("vhost", "off"),
        ("vnet_hdr", "on"), ("sndbuf", "0"),
      ]))
    #expect(named.interface == "tap7" && named.queueCount == 4 && named.descriptors.isEmpty)
    #expect(try TapNetdevOptions(assign([("fd", "5")])).descriptors.map(\.number) == [5])
    #expect(try TapNetdevOptions(assign([("fds", "5:net1:7")])).descriptors.map(\.text) == ["5", "net1", "7"])
    for (name, value) in [
      ("script", "/etc/qemu-ifup"), ("downscript", "x"), ("vnet_hdr", "off"), ("sndbuf", "1M"),
    ] {
      guard
        case .value(name: name, text: value, .refused(let reason))? = problem(
          [(name, value)], of: TapNetdevOptions.self)
      else {
        Issue.record("\(name)=\(value) is accepted")
        continue
      }
      #expect(!name.hasSuffix("script") || reason.contains("Nestling runs no scripts"))
    }
    #expect(
      problem([("ifname", "0123456789abcdef")], of: TapNetdevOptions.self)
        == .value(name: "ifname", text: "0123456789abcdef", .tooLong(bytes: 15)))
    let invalid = PropertyError.rule("ifname=, queues=, fds= and vhostfds= are invalid with fd=")
    for more in [("ifname", "a"), ("queues", "2"), ("fds", "1:2")] {
      #expect(problem([("fd", "5"), more], of: TapNetdevOptions.self) == invalid)
    }
    #expect(problem([("fds", "5:"), ("queues", "2")], of: TapNetdevOptions.self) != nil)
    #expect(
      problem([("fds", "5:6"), ("queues", "2")], of: TapNetdevOptions.self)
        == .rule("ifname=, queues= and vhostfd= are invalid with fds="))
  }

  @Test func `a network device has QEMU's defaults and refuses what no device can have`() throws {
    let defaults = VirtioNetOptions()
    #expect(defaults.parameters.receiveQueueSize == 256 && defaults.parameters.transmitQueueSize == 256)
    let states = Dictionary(uniqueKeysWithValues: defaults.propertyStates.map { ($0.name, $0.text) })
    for name in ["csum", "guest_csum", "guest_tso4", "host_tso6", "mrg_rxbuf", "status", "ctrl_vq", "ctrl_mac_addr"] {
      #expect(states[name] == "on", "\(name)")
    }
    #expect(states["mq"] == "off" && states["iommu_platform"] == "off")
    let options = try VirtioNetOptions(
      assign([("mac", "52:54:00-ab:CD:01"), ("csum", "off"), ("mq", "on"), ("duplex", "full"), ("speed", "1000")]))
    #expect(options.address?.rawValue == 0x5254_00ab_cd01)
    #expect(options.parameters.duplex == .full && options.parameters.speed == 1000)
    let after = Dictionary(uniqueKeysWithValues: options.propertyStates.map { ($0.name, $0.text) })
    #expect(after["csum"] == "off" && after["mq"] == "on" && after["mac"] == "52:54:00:ab:cd:01")
    for mac in ["1:2", "52:54:00:12:34:5", "52:54:00:12:34:5g", "52:54:00:12:34:567", "52.54.00.12.34.56", ""] {
      #expect(problem([("mac", mac)], of: VirtioNetOptions.self) == .value(name: "mac", text: mac, .notMACAddress))
    }
    let cases: [([(String, String)], PropertyError)] = [
      ([("mac", "01:00:5e:00:00:01")], .rule("mac must not be a multicast address")),
      ([("host_mtu", "67")], .rule("host_mtu must be 0, or between 68 and 65535")),
      (
        [("rx_queue_size", "300")],
        .value(name: "rx_queue_size", text: "300", .notPowerOfTwo(lowest: 256, highest: 1024))
      ),
      (
        [("tx_queue_size", "128")],
        .value(name: "tx_queue_size", text: "128", .notPowerOfTwo(lowest: 256, highest: 1024))
      ),
      ([("vectors", "2049")], .value(name: "vectors", text: "2049", .outOfRange(lowest: 0, highest: 2048))),
      ([("duplex", "x")], .value(name: "duplex", text: "x", .notOneOf(["half", "full"]))),
    ]
    for (values, error) in cases { #expect(problem(values, of: VirtioNetOptions.self) == error, "\(values)") }
  }

  // MARK: Admission

  private func machine(_ netdevs: [String], _ cards: [String?]) throws -> MachineConfiguration {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.netdevs = try netdevs.map { id in
      try StreamNetdevOptions(assign([("id", id), ("addr.type", "unix"), ("addr.path", "/s")]))
    }
    configuration.devices = try cards.enumerated().map { index, netdev in
      try VirtioNetOptions(assign([("id", "d\(index)")] + (netdev.map { [("netdev", $0)] } ?? [])))
    }
    return configuration
  }

  @Test func `a netdev has an id of its own, and one device at most uses it`() throws {
    let use = NetdevUse(property: "netdev", id: try Identifier(text: "n0"))
    try machine(["n0", "n1"], ["n0", "n1", nil, nil]).check()
    #expect(throws: ConfigurationError.device(index: 0, .unknownNetdev(use, known: ["n1"]))) {
      try machine(["n1"], ["n0"]).check()
    }
    let user = AddressOwner.device(typeName: "virtio-net-pci", id: try Identifier(text: "d0"))
    #expect(throws: ConfigurationError.device(index: 1, .netdevInUse(use, by: user))) {
      try machine(["n0"], ["n0", "n0"]).check()
    }
    #expect(throws: ConfigurationError.netdev(index: 1, .duplicateID(use.id))) {
      try machine(["n0", "n0"], []).check()
    }
    var nameless = try machine([], [])
    nameless.netdevs = [StreamNetdevOptions()]
    #expect(throws: ConfigurationError.netdev(index: 0, .missingID)) { try nameless.check() }
  }
}
