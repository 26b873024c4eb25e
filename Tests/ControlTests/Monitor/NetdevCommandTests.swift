import Glibc
import JSON
import Linux
import Machine
import Testing

@testable import Control

/// Compares `-netdev`, `netdev_add` and related commands with QEMU, word for word.
@Suite struct NetdevCommandTests {
  private static let unix = #""addr": {"type": "unix", "path": "/a,b"}"#

  private func options(_ id: String, server: Bool = false) throws -> StreamNetdevOptions {
    var options = StreamNetdevOptions()
    options.id = try Identifier(text: id)
    options.address.kind = .unix
    options.address.path = "/a,b"
    options.server = server
    return options
  }

  @Test func `QMP, HMP and the command line describe the same netdev`() throws {
    var client = QMPClient()
    #expect(
      client.send(#"{"execute": "netdev_add", "arguments": {"type": "stream", "id": "n0", \#(Self.unix)}}"#)
        == [#"{"return": {}}"#])
    #expect(HumanCommands.run("netdev_add stream,id=n0,addr.type=unix,addr.path=/a,,b", on: client.machine).text == "")
    let wanted = try options("n0", server: true)
    #expect(client.machine.requests == Array(repeating: "add \(try options("n0"))", count: 2))
    for text in [
      "stream,id=n0,addr.type=unix,addr.path=/a,,b,server=on",
      #"{"type": "stream", "id": "n0", "server": true, \#(Self.unix)}"#,
    ] {
      let machine = try configuration("-accel", "qtest", "-netdev", text)
      #expect(machine.netdevs.compactMap { $0 as? StreamNetdevOptions } == [wanted])
    }
  }

  @Test func `an error in netdev_add has QEMU's words`() {
    var client = QMPClient()
    let cases: [(String, String)] = [
      ("{}", "Parameter 'type' is missing"),
      (#"{"type": "foo", "id": "n"}"#, "Parameter 'type' does not accept value 'foo'"),
      (#"{"type": 1, "id": "n"}"#, "Invalid parameter type for 'type', expected: string"),
      (#"{"type": "stream"}"#, "Parameter 'id' is missing"),
      (#"{"type": "stream", "id": "n"}"#, "Parameter 'addr' is missing"),
      (#"{"type": "stream", "id": "1x", \#(Self.unix)}"#, "Parameter 'id' expects an identifier"),
      (#"{"type": "stream", "id": "n", "addr": {"type": "unix"}}"#, "Parameter 'addr.path' is missing"),
      (
        #"{"type": "stream", "id": "n", "server": "on", \#(Self.unix)}"#,
        "Invalid parameter type for 'server', expected: boolean"
      ),
      (
        #"{"type": "stream", "id": "n", "addr": {"type": "inet", "host": "127.0.0.1"}}"#,
        "Parameter 'addr.port' is missing"
      ),
      (
        #"{"type": "stream", "id": "n", "addr": {"type": "inet", "host": "127.0.0.1", "port": 80}}"#,
        "Invalid parameter type for 'addr.port', expected: string"
      ),
      (#"{"type": "stream", "id": "n", "foo": 1, \#(Self.unix)}"#, "Parameter 'foo' is unexpected"),
    ]
    for (arguments, text) in cases {
      #expect(
        client.send(#"{"execute": "netdev_add", "arguments": \#(arguments)}"#) == [
          #"{"error": {"class": "GenericError", "desc": "\#(text)"}}"#
        ], "\(arguments)")
    }
    #expect(client.machine.requests.isEmpty)
  }

  @Test func `a tap takes files that the client has passed, and their names are used up`() throws {
    var client = QMPClient()
    let names = client.machine.descriptors
    for name in ["net0", "net1", "net2"] {
      names.name(PassedDescriptor(try FileDescriptor(opening: "/dev/null", O_RDWR)), name)
    }
    #expect(client.ask("netdev_add", ["type": "tap", "id": "t0", "fd": "net0"]) == [:])
    #expect(names["net0"] == nil && names["net1"] != nil)
    #expect(client.ask("netdev_add", ["type": "tap", "id": "t1", "fds": "net1:net2"]) == [:])
    #expect(names["net1"] == nil && names["net2"] == nil)
    #expect(client.machine.requests.count == 2)
    for name in ["net3", "vhost3"] {
      names.name(PassedDescriptor(try FileDescriptor(opening: "/dev/null", O_RDWR)), name)
    }
    #expect(client.ask("netdev_add", ["type": "tap", "id": "t2", "fd": "net3", "vhostfd": "vhost3"]) == [:])
    #expect(names["net3"] == nil && names["vhost3"] == nil)
    // The command line names no open file but by its number.
    #expect(
      failure(["-accel", "qtest", "-netdev", "tap,id=t0,fd=net0"])?.contains("fd must be a whole number") == true)
    #expect(try configuration("-accel", "qtest", "-netdev", "tap,id=t0,fds=7:8").netdevs.first?.descriptors.count == 2)
  }

  @Test func `a list is an array of objects in JSON, and a repeated property elsewhere`() throws {
    var wanted = UserNetdevOptions()
    wanted.id = try Identifier(text: "u0")
    wanted.forwards = [try HostForward(text: "tcp::2222-:22"), try HostForward(text: "udp::53-:53")]
    let json = #"{"type": "user", "id": "u0", "hostfwd": [{"str": "tcp::2222-:22"}, {"str": "udp::53-:53"}]}"#
    let text = "user,id=u0,hostfwd=tcp::2222-:22,hostfwd=udp::53-:53"
    for option in [json, text] {
      let machine = try configuration("-accel", "qtest", "-netdev", option)
      #expect(machine.netdevs.compactMap { $0 as? UserNetdevOptions } == [wanted])
    }
    var client = QMPClient()
    #expect(client.send(#"{"execute": "netdev_add", "arguments": \#(json)}"#) == [#"{"return": {}}"#])
    #expect(HumanCommands.run("netdev_add " + text, on: client.machine).text == "")
    #expect(client.machine.requests == Array(repeating: "add \(wanted)", count: 2))
    let cases: [(String, String)] = [
      (#""tcp::2222-:22""#, "Invalid parameter type for 'hostfwd', expected: array"),
      (#"["tcp::2222-:22"]"#, "Invalid parameter type for 'hostfwd[0]', expected: object"),
      (#"[{"str": "tcp::1-:1"}, {}]"#, "Parameter 'hostfwd[1].str' is missing"),
      (#"[{"str": 1}]"#, "Invalid parameter type for 'hostfwd[0].str', expected: string"),
    ]
    for (value, text) in cases {
      #expect(
        client.send(#"{"execute": "netdev_add", "arguments": {"type": "user", "id": "u1", "hostfwd": \#(value)}}"#)
          == [#"{"error": {"class": "GenericError", "desc": "\#(text)"}}"#], "\(value)")
    }
  }

  @Test func `the failures of passt are one line`() throws {
    let failure = ProgramFailure(program: "passt", end: .exited(status: 1), reason: "Invalid address: foo")
    #expect(ErrorText.text(for: failure) == "passt ended with status 1: Invalid address: foo")
    let killed = ProgramFailure(program: "passt", end: .killed(signal: 9), reason: nil)
    #expect(ErrorText.text(for: killed) == "passt ended by signal 9")
    let id = try Identifier(text: "n0")
    #expect(
      ErrorText.line(for: StartError.netdev(typeName: "user", id: id, .notInstalled("passt")))
        == "nestling: -netdev user,id=n0: there is no program 'passt' in PATH: install the package passt\n")
    #expect(MachineNotice.netdevProgramEnded(id, killed).event(at: 0) == nil)
  }

  @Test func `the machine's refusals have QEMU's words`() throws {
    let use = NetdevUse(property: "netdev", id: try Identifier(text: "n0"))
    let cases: [(RequestError, MonitorError)] = [
      (.backend(.duplicateNetdev(use.id)), .generic("Duplicate ID 'n0'")),
      (.backend(.noSuchNetdev("nix")), .deviceNotFound("Device 'nix' not found")),
      (
        .refused(typeName: "virtio-net-pci", .unknownNetdev(use, known: [])),
        .generic("Property 'virtio-net-device.netdev' can't find value 'n0'")
      ),
      (
        .refused(typeName: "virtio-net-pci", .netdevInUse(use, by: .device(typeName: "virtio-net-pci", id: nil))),
        .generic("Property 'virtio-net-device.netdev' can't take value 'n0', it's in use")
      ),
      (
        .property(typeName: "virtio-net-pci", .value(name: "mac", text: "1:2", .notMACAddress)),
        .generic("Property 'virtio-net-device.mac' doesn't take value '1:2'")
      ),
    ]
    for (error, text) in cases { #expect(MonitorError(error) == text) }
  }

  @Test func `links are set and netdevs removed by name, in QMP and HMP`() {
    var client = QMPClient()
    #expect(client.ask("set_link", ["name": "d0", "up": false]) == [:])
    #expect(client.ask("netdev_del", ["id": "n0"]) == [:])
    #expect(client.ask("set_link", ["name": "d0"]) == nil && client.ask("set_link", ["name": "d0", "up": "on"]) == nil)
    let missing = [#"{"error": {"class": "DeviceNotFound", "desc": "Device 'nix' not found"}}"#]
    #expect(client.send(#"{"execute": "netdev_del", "arguments": {"id": "nix"}}"#) == missing)
    #expect(client.send(#"{"execute": "set_link", "arguments": {"name": "nix", "up": true}}"#) == missing)
    let machine = client.machine
    func human(_ line: String) -> String { HumanCommands.run(line, on: machine).text }
    #expect(human("set_link d0 on") == "" && human("netdev_del n0") == "")
    #expect(
      machine.requests == ["link d0 up: false", "remove netdev n0", "link d0 up: true", "remove netdev n0"])
    let usage = "Expected 'on' or 'off'\nTry \"help set_link\" for more information\n"
    #expect(human("set_link d0") == usage && human("set_link d0 maybe") == usage)
    #expect(human("set_link nix off") == "Error: Device 'nix' not found\n")
    #expect(human("netdev_del nix") == "Error: Device 'nix' not found\n")
    #expect(human("netdev_add stream") == "Error: Parameter 'id' is missing\n")
    #expect(human("netdev_add foo,id=n") == "Error: Parameter 'type' does not accept value 'foo'\n")
  }

  @Test func `info network shows the netdevs, and each with its device`() {
    let text = """
      n0: index=0,type=stream,error: /tmp/s: No such file or directory,link=down
      n1: index=0,type=stream,listening,link=down
      d0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
       \\ n2: index=0,type=stream,tcp:127.0.0.1:1234
      virtio-net-pci.0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57,link=down

      """
    #expect(HumanCommands.run("info network", on: RecordingMachine()).text == text)
  }

  @Test func `the events of a stream have QEMU's names and members`() throws {
    func text(_ notice: MachineNotice) -> String? {
      notice.event(at: 0).map { String(decoding: $0.text(), as: UTF8.self) }
    }
    let time = #"{"timestamp": {"seconds": 0, "microseconds": 0}, "event": "#
    let id = try Identifier(text: "n0")
    #expect(
      text(.streamConnected(id, .unix(path: "/s"))) == time
        + #""NETDEV_STREAM_CONNECTED", "data": {"netdev-id": "n0", "addr": {"type": "unix", "path": "/s"}}}"#)
    #expect(
      text(.streamConnected(id, .inet(host: "::1", port: 99))) == time
        + #""NETDEV_STREAM_CONNECTED", "data": {"netdev-id": "n0", "#
        + #""addr": {"type": "inet", "host": "::1", "port": "99"}}}"#)
    #expect(
      text(.streamDisconnected(id)) == time + #""NETDEV_STREAM_DISCONNECTED", "data": {"netdev-id": "n0"}}"#)
  }

  @Test func `the command line names an unknown type, netdev or user`() {
    let stream = "stream,id=n0,addr.type=unix,addr.path=/s"
    let cases: [([String], String)] = [
      (["-netdev", "vde,id=n0"], "-netdev vde,id=n0: unknown netdev type; supported: "),
      (
        ["-netdev", "user,id=n0,hostfwd=tcp::22"],
        "hostfwd must be [tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT with IPv4 addresses, such as tcp::2222-:22, "
          + "not 'tcp::22'"
      ),
      (["-netdev", "user,id=n0,net=10.0.2.0"], "net must be an IPv4 network with 4 to 30 prefix bits"),
      (["-netdev", "user,id=n0,dns=host"], "dns must be an IPv4 address, such as 10.0.2.15, not 'host'"),
      (["-netdev", "user,id=n0,tftp=/srv"], "tftp cannot be '/srv': passt has no such server"),
      (["-netdev", "passt,id=n0,fqdn=a.b"], "fqdn cannot be 'a.b': Debian 12's passt has no --fqdn"),
      (["-netdev", "stream,id=n0"], "-netdev stream,id=n0: Parameter 'addr' is missing"),
      (["-netdev", #"{"type": "stream"}"#], #"-netdev {"type": "stream"}: Parameter 'id' is missing"#),
      (["-netdev", "stream,addr.type=unix,addr.path=/s"], ": Parameter 'id' is missing"),
      (["-netdev", stream, "-netdev", stream], ": Duplicate ID 'n0' for netdev"),
      (
        ["-netdev", stream, "-device", "virtio-net-pci,netdev=n1"],
        "-device virtio-net-pci,netdev=n1: netdev: no netdev 'n1'; nearest: n0"
      ),
      (
        ["-netdev", stream, "-device", "virtio-net-pci,id=a,netdev=n0", "-device", "virtio-net-pci,netdev=n0"],
        "-device virtio-net-pci,netdev=n0: netdev: 'n0' is in use by virtio-net-pci 'a'"
      ),
      (
        ["-device", "virtio-net-pci,mac=1:2"],
        "-device virtio-net-pci,mac=1:2: mac must be six bytes, such as 52:54:00:12:34:56, not '1:2'"
      ),
    ]
    for (words, text) in cases {
      let line = failure(["-accel", "qtest"] + words)
      #expect(line?.contains(text) == true, "\(words): \(line ?? "")")
    }
    #expect(printed("-netdev", "help")?.contains("\nstream\n") == true)
    #expect(printed("-netdev", "stream,help")?.contains("addr.path=<str>") == true)
  }
}
