import JSON
import Machine
import Testing

@testable import Control

@Suite struct MonitorCommandTests {
  private func elements(_ value: JSONValue?) -> [JSONObject] {
    guard case .array(let list)? = value else { return [] }
    return list.compactMap { if case .object(let object) = $0 { object } else { nil } }
  }
  private func names(_ value: JSONValue?) -> [String] {
    elements(value).compactMap { if case .string(let name)? = $0["name"] { name } else { nil } }
  }

  @Test("query-status shows stop and cont, and reset and power-down requests reach the machine")
  func status() {
    var client = QMPClient()
    #expect(client.ask("query-status") == ["status": "running", "running": true])
    #expect(client.ask("stop") == [:])
    #expect(client.ask("query-status") == ["status": "paused", "running": false])
    #expect(client.ask("cont") == [:])
    #expect(client.ask("query-status") == ["status": "running", "running": true])
    #expect(client.ask("system_reset") == [:] && client.ask("system_powerdown") == [:])
    #expect(client.machine.requests == ["reset", "power down"])
  }

  /// The words and the state are QEMU's: only a reset leads out of a device error.
  @Test("after a device error, cont is refused because a reset is required")
  func aMachineThatADeviceFailed() {
    let machine = RecordingMachine()
    machine.fail()
    var client = QMPClient(machine)
    #expect(client.ask("query-status") == ["status": "internal-error", "running": false])
    #expect(
      client.send(#"{"execute": "cont"}"#) == [
        #"{"error": {"class": "GenericError", "desc": "Resetting the Virtual Machine is required"}}"#
      ])
    #expect(HumanCommands.run("cont", on: machine).text == "Error: Resetting the Virtual Machine is required\n")
    #expect(HumanCommands.run("info status", on: machine).text == "VM status: paused (internal-error)\n")
    #expect(machine.status == .internalError)
  }

  @Test("queries describe the machine")
  func theMachine() throws {
    var configuration = MachineConfiguration()
    configuration.name = "guest0"
    configuration.processors = ProcessorTopology(coresPerSocket: 2)
    configuration.memory.size = 256 << 20
    var client = QMPClient(RecordingMachine(configuration))
    #expect(client.ask("query-name") == ["name": "guest0"])
    #expect(client.ask("query-memory-size-summary") == ["base-memory": 268_435_456])
    #expect(client.ask("query-target") == ["arch": "x86_64"])
    #expect(client.ask("query-iothreads") == [])
    #expect(
      client.ask("query-chardev")
        == [["frontend-open": true, "filename": "unix:/tmp/s,server=on", "label": "c0"]])
    let processors = elements(client.ask("query-cpus-fast"))
    #expect(processors.map { $0["cpu-index"] } == [0, 1] && processors[0]["thread-id"] == 4711)
    #expect(processors[1]["props"] == ["socket-id": 0, "core-id": 1, "thread-id": 0])
    #expect(names(client.ask("query-machines")) == ["q35"])
    #expect(client.ask("x-query-iommu") == ["human-readable-text": "iommu0: as it is\n"])
    guard case .array(let buses)? = client.ask("query-pci"), case .object(let bus)? = buses.first else {
      Issue.record("no buses")
      return
    }
    let device = try #require(elements(bus["devices"]).first)
    #expect(device["slot"] == 2 && device["qdev_id"] == "e0" && device["irq"] == 11)
    #expect(
      device["regions"] == [
        [
          "bar": 0, "type": "memory", "address": 0xc000_0000, "size": 0x10_0000, "prefetch": false,
          "mem_type_64": false,
        ]
      ])
    let port = try #require(elements(bus["devices"]).last)
    guard case .object(let bridge)? = port["pci_bridge"] else {
      Issue.record("no bridge")
      return
    }
    #expect(
      bridge["bus"] == [
        "number": 0, "secondary": 1, "subordinate": 2, "io_range": ["base": 0, "limit": 0xfff],
        "memory_range": ["base": 0xc010_0000, "limit": 0xc01f_ffff],
        "prefetchable_range": ["base": 0xfff0_0000, "limit": 0xf_ffff],
      ])
    let below = try #require(elements(bridge["devices"]).first)
    #expect(below["bus"] == 1 && below["slot"] == 0 && below["qdev_id"] == "e1" && device["pci_bridge"] == nil)
  }

  @Test("types and their properties are listed")
  func kindsAndProperties() throws {
    var client = QMPClient()
    #expect(names(client.ask("qom-list-types", ["implements": "machine"])) == ["q35-machine"])
    let devices = names(client.ask("qom-list-types", ["implements": "device"]))
    #expect(devices.contains("intel-iommu") && devices.contains("edu") && !devices.contains("rng-random"))
    #expect(!devices.contains("pci-device"))
    #expect(names(client.ask("qom-list-types", ["implements": "device", "abstract": true])).contains("pci-device"))
    #expect(!names(client.ask("qom-list-types", ["implements": "pci-device"])).contains("intel-iommu"))
    #expect(client.ask("qom-list-types", ["implements": "nonexistent"]) == [])
    let properties = elements(client.ask("device-list-properties", ["typename": "intel-iommu"]))
    let width = try #require(properties.first { $0["name"] == "aw-bits" })
    #expect(width["type"] == "uint8" && width["default-value"] == 48)
    #expect(properties.first { $0["name"] == "fs1gp" }?["default-value"] == true)
    #expect(
      client.send(#"{"execute": "device-list-properties", "arguments": {"typename": "nosuch"}}"#)
        == [#"{"error": {"class": "DeviceNotFound", "desc": "Device 'nosuch' not found"}}"#])
    #expect(names(client.ask("qom-list-properties", ["typename": "rng-random"])).contains("filename"))
  }

  @Test("the schema contains every command, the event SHUTDOWN, and every type that it refers to")
  func theSchemaIsWhole() throws {
    var client = QMPClient()
    let entities = elements(client.ask("query-qmp-schema"))
    let commands = names(client.ask("query-commands"))
    #expect(Set(commands).count == commands.count && commands == commands.sorted())
    let known = entities.compactMap { if case .string(let name)? = $0["name"] { name } else { nil } }
    #expect(Set(known).count == known.count)
    #expect(Set(commands).isSubset(of: known) && known.contains("SHUTDOWN"))
    for entity in entities {
      for key in ["arg-type", "ret-type", "element-type"] {
        if case .string(let name)? = entity[key] { #expect(known.contains(name), "\(entity)") }
      }
      for member in elements(entity["members"]) {
        if case .string(let name)? = member["type"] { #expect(known.contains(name), "\(entity)") }
      }
    }
    let command = try #require(entities.first { $0["name"] == "human-monitor-command" })
    let argument = try #require(entities.first { $0["name"] == command["arg-type"] })
    #expect(
      argument["members"] == [
        ["name": "command-line", "type": "str"], ["name": "cpu-index", "type": "int", "default": .null],
      ])
    #expect(command["ret-type"] == "str")
  }

  /// Lines end in CR LF as QEMU's do.
  @Test("human commands answer in QEMU's layout")
  func linesForPeople() {
    var client = QMPClient()
    func human(_ line: String) -> JSONValue? { client.ask("human-monitor-command", ["command-line": .string(line)]) }
    #expect(human("info status") == "VM status: running\r\n")
    #expect(human("info kvm") == "kvm support: enabled\r\n")
    #expect(human("info cpus") == "* CPU #0: thread_id=4711\r\n")
    #expect(human("info chardev") == "c0: filename=unix:/tmp/s,server=on\r\n")
    #expect(human("info iommu") == "iommu0: as it is\r\n")
    #expect(human("  info iommu translate 00:02.0:1 0x1000 ") == "translated 00:02.0:1 0x1000\r\n")
    #expect(
      human("info pci")
        == .string(
          """
            Bus  0, device   2, function 0:
              Class 00ff: PCI device 1234:11e8
                IRQ 11, pin A
                BAR0: 32 bit memory at 0xc0000000 [0xc00fffff].
                id "e0"
            Bus  0, device   4, function 0:
              PCI bridge: PCI device 1b36:000c
                BUS 0.
                secondary bus 1.
                subordinate bus 2.
                IO range [0x0000, 0x0fff].
                memory range [0xc0100000, 0xc01fffff].
                prefetchable memory range [0xfff00000, 0x000fffff].
                id "rp0"
            Bus  1, device   0, function 0:
              Class 00ff: PCI device 1234:11e8
                IRQ 20, pin A
                id "e1"

          """.replacing("\n", with: "\r\n")))
    #expect(human("nonsense") == "unknown command: 'nonsense'\r\n")
    #expect(human("info nonsense") == "unknown command: 'info nonsense'\r\n")
    #expect(human("stop now") == "stop: extraneous characters at the end of line\r\n")
    #expect(human("stop") == "" && human("info status") == "VM status: paused\r\n")
    #expect(human("") == "")
    #expect(human("q") == "" && client.machine.requests == ["quit"])
    guard case .string(let help)? = human("help"), case .string(let information)? = human("info") else {
      Issue.record("no help")
      return
    }
    #expect(help.contains("quit|q -- quit the emulator\r\n") && information.contains("info version -- "))
  }

  @Test func `set-action applies supported actions, and refuses others before it changes anything`() {
    var client = QMPClient()
    func refusal(_ arguments: String) -> String {
      client.send(#"{"execute": "set-action", "arguments": \#(arguments)}"#).first ?? ""
    }
    #expect(refusal(#"{"reboot": "x"}"#).contains("Parameter 'reboot' does not accept value 'x'"))
    #expect(refusal(#"{"reboot": "shutdown", "shutdown": "pause"}"#).contains("'shutdown' cannot be 'pause'"))
    #expect(refusal(#"{"reboot": "shutdown", "panic": "none"}"#).contains("'panic' cannot be set"))
    #expect(refusal(#"{"reboot": "shutdown", "watchdog": "reset"}"#).contains("'watchdog' cannot be set"))
    #expect(client.machine.requests.isEmpty)
    #expect(client.ask("set-action") == [:] && client.machine.requests.isEmpty)
    #expect(client.ask("set-action", ["reboot": "shutdown", "shutdown": "poweroff"]) == [:])
    #expect(client.ask("set-action", ["reboot": "reset"]) == [:])
    #expect(client.machine.requests == ["reboot is shutdown", "reboot is reset"])
  }

  @Test func `query-memdev describes the RAM and its memory backend`() throws {
    var client = QMPClient()
    let first = elements(client.ask("query-memdev")).first
    #expect(first?["id"] == "pc.ram" && first?["size"] == 134_217_728 && first?["share"] == false)
    var configuration = MachineConfiguration()
    var object = MemoryBackendMemfdOptions()
    object.id = try Identifier(text: "ram0")
    configuration.objects = [object]
    configuration.memory.isShared = true
    configuration.memory.size = 64 << 20
    var other = QMPClient(RecordingMachine(configuration))
    let second = elements(other.ask("query-memdev")).first
    #expect(second?["id"] == "ram0" && second?["size"] == 67_108_864 && second?["share"] == true)
    let text = HumanCommands.run("info memdev", on: other.machine).text
    #expect(text.hasPrefix("memory backend: ram0\n  size:  67108864\n"))
  }

  @Test func `exit_times starts and stops the measurement that info exits prints`() {
    let machine = RecordingMachine()
    func human(_ line: String) -> String { HumanCommands.run(line, on: machine).text }
    #expect(human("info exits") == "exit times: off (exit_times on starts measuring)\n")
    #expect(human("exit_times") == "exit_times: on or off expected\n" && human("exit_times maybe") != "")
    #expect(machine.requests.isEmpty)
    #expect(human("exit_times on") == "")
    #expect(
      human("info exits")
        == "CPU #0: exits=4 mean_ns=11000 longest_ns=30000 (port 0x64 read) undisturbed_ns=9000 (port 0xcc8 write 0x1)\n"
    )
    #expect(human("exit_times off") == "" && human("info exits").contains("off"))
    #expect(machine.requests == ["measure exits: true", "measure exits: false"])
  }

  @Test func `info mtree and info qom-tree have QEMU's layouts`() {
    let machine = RecordingMachine()
    let memory = """
      address-space: memory
        0000000000000000-ffffffffffffffff (prio 0, i/o): system
          0000000000000000-0000000003ffffff (prio 0, ram): ram-below-4g
          0000000000000000-ffffffffffffffff (prio -1, i/o): pci
            00000000c0000000-00000000c00fffff (prio 1, i/o): edu 00:02.0 BAR0
          00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic

      address-space: I/O
        0000000000000000-000000000000ffff (prio 0, i/o): io
          0000000000000070-0000000000000071 (prio 0, i/o): rtc

      """
    #expect(HumanCommands.run("info mtree", on: machine).text == memory)
    let tree = """
      /machine (q35-machine)
        /peripheral (container)
          /e0 (edu)
        /peripheral-anon (container)
          /device[0] (edu)

      """
    #expect(HumanCommands.run("info qom-tree", on: machine).text == tree)
    #expect(
      HumanCommands.run("info qom-tree /objects", on: machine).text == "/objects (container)\n  /rng0 (rng-random)\n")
    #expect(HumanCommands.run("info qom-tree nix", on: machine).text == "Path 'nix' could not be resolved.\n")
  }
}
