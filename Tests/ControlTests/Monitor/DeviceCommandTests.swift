import Hardware
import JSON
import Machine
import Testing

@testable import Control

/// Compares `device_add` and `device_del` with QEMU 7.2, word for word.
@Suite struct DeviceCommandTests {
  private func error(_ class: String, _ text: String) -> [String] {
    [#"{"error": {"class": "\#(`class`)", "desc": "\#(text)"}}"#]
  }
  private func generic(_ text: String) -> [String] { error("GenericError", text) }

  @Test func `a device's values may be strings, numbers and booleans`() {
    var client = QMPClient()
    func add(_ arguments: String) -> [String] {
      client.send(#"{"execute": "device_add", "arguments": \#(arguments)}"#)
    }
    #expect(add(#"{"driver": "edu", "id": "e0", "dma_mask": 4095, "addr": "7"}"#) == [#"{"return": {}}"#])
    #expect(
      add(#"{"driver": "virtio-rng", "max-bytes": "12", "period": 7, "iommu_platform": true, "event_idx": "off"}"#)
        == [#"{"return": {}}"#])
    var edu = EduOptions()
    edu.id = try? Identifier(text: "e0")
    edu.mask = 4095
    edu.function.address = RequesterID(bus: 0, device: 7, function: 0)
    var rng = VirtioRNGOptions()
    rng.bytesPerPeriod = 12
    rng.period = 7
    rng.transport.iommuPlatform = true
    rng.transport.eventIndex = false
    #expect(client.machine.requests == ["add \(edu)", "add \(rng)"])
  }

  @Test func `an error in a device has QEMU's words`() {
    var client = QMPClient()
    let cases: [(String, String)] = [
      ("{}", "Parameter 'driver' is missing"),
      (#"{"driver": "foo"}"#, "'foo' is not a valid device model name"),
      (#"{"driver": 1}"#, "'1' is not a valid device model name"),
      (#"{"driver": "pci-device"}"#, "Parameter 'driver' expects a non-abstract device type"),
      (#"{"driver": "foo", "id": "1x"}"#, "Parameter 'id' expects an identifier"),
      (#"{"driver": "edu", "nosuch": 1}"#, "Property 'edu.nosuch' not found"),
      (#"{"driver": "edu", "dma_mask": true}"#, "Parameter 'dma_mask' expects integer"),
      (#"{"driver": "edu", "addr": "zz"}"#, "Property 'edu.addr' doesn't take value 'zz'"),
      (#"{"driver": "virtio-blk-pci", "drive": "d", "discard": "x"}"#, "Parameter 'discard' expects 'on' or 'off'"),
      (
        #"{"driver": "virtio-blk-pci", "drive": "d", "logical_block_size": "x"}"#,
        "Parameter 'logical_block_size' expects size"
      ),
      (#"{"driver": "edu", "addr": [1]}"#, "Invalid parameter type for 'addr', expected: string"),
    ]
    for (arguments, text) in cases {
      #expect(
        client.send(#"{"execute": "device_add", "arguments": \#(arguments)}"#) == generic(text), "\(arguments)")
    }
    #expect(client.send(#"{"execute": "device_del"}"#) == generic("Parameter 'id' is missing"))
    #expect(
      client.send(#"{"execute": "device_del", "arguments": {"id": 1}}"#)
        == generic("Invalid parameter type for 'id', expected: string"))
    #expect(
      client.send(#"{"execute": "device_del", "arguments": {"id": "nosuch"}}"#)
        == error("DeviceNotFound", "Device 'nosuch' not found"))
    #expect(client.machine.requests.isEmpty)
  }

  @Test func `the machine's refusals have QEMU's class and words`() throws {
    let id = try Identifier(text: "e0")
    let drive = NodeUse(property: "drive", id: "d")
    let rng = ObjectUse(property: "rng", id: id, typeNames: ["rng-builtin", "rng-random"])
    let iommufd = ObjectUse(property: "iommufd", id: id, typeNames: ["iommufd"])
    let address = RequesterID(bus: 0, device: 3, function: 0)
    func refused(_ typeName: String, _ problem: DeviceProblem) -> MonitorError {
      MonitorError(.refused(typeName: typeName, problem))
    }
    let cases: [(MonitorError, MonitorError)] = [
      (MonitorError(.noHotplug(bus: "pcie.0")), .generic("Bus 'pcie.0' does not support hotplugging")),
      (MonitorError(.noSuchBus("rp9")), .generic("Bus 'rp9' not found")),
      (MonitorError(.wrongBus(typeName: "edu", .isa)), .generic("Device 'edu' can't go on ISA bus")),
      (MonitorError(.notPluggable), .generic("Parameter 'driver' expects a pluggable device type")),
      (refused("edu", .duplicateID(id)), .generic("Duplicate device ID 'e0'")),
      (
        refused("virtio-blk-pci", .unknownNode(drive, known: [])),
        .generic("Property 'virtio-blk-device.drive' can't find value 'd'")
      ),
      (
        refused("virtio-blk-pci", .nodeInUse(drive, by: .device(typeName: "virtio-blk-pci", id: nil))),
        .generic("Drive 'd' is already in use by another device")
      ),
      (refused("virtio-rng-pci", .unknownObject(rng, known: [])), .deviceNotFound("Device 'e0' not found")),
      (
        refused("virtio-rng-pci", .wrongObject(rng, typeName: "iommufd")),
        .generic("Invalid parameter type for 'rng', expected: rng-backend")
      ),
      (
        refused("vfio-pci", .wrongObject(iommufd, typeName: "rng-random")),
        .generic("Invalid parameter type for 'iommufd', expected: iommufd")
      ),
      (
        refused("edu", .addressTaken(address, by: .device(typeName: "edu", id: nil))),
        .generic("PCI: slot 3 function 0 not available for edu, in use by edu,id=(null)")
      ),
      (
        refused(
          "edu",
          .functionZeroFound(
            RequesterID(bus: 0, device: 0x12, function: 1), by: .device(typeName: "dma-engine", id: nil))),
        .generic(
          "PCI: slot 18 function 0 already occupied by dma-engine, new func edu cannot be exposed to guest.")
      ),
      (
        refused("edu", .noFreeAddress),
        .generic("PCI: no slot/function available for edu, all in use or reserved")
      ),
    ]
    for (error, expected) in cases { #expect(error == expected) }
  }

  @Test func `the human monitor adds and removes devices as on the command line`() {
    let machine = RecordingMachine()
    func human(_ line: String) -> String { HumanCommands.run(line, on: machine).text }
    #expect(human("device_add edu,id=e0,dma_mask=0xfff") == "" && human("device_del e0") == "")
    #expect(machine.requests.count == 2 && machine.requests.last == "remove e0")
    #expect(human("device_add") == "Error: Parameter 'driver' is missing\n")
    #expect(human("device_add nope") == "Error: 'nope' is not a valid device model name\n")
    #expect(human("device_add edu,nosuch=1") == "Error: Property 'edu.nosuch' not found\n")
    #expect(human("device_del nosuch") == "Error: Device 'nosuch' not found\n")
    #expect(human("device_del") == "device_del: string expected\nTry \"help device_del\" for more information\n")
    #expect(human("device_add help").contains("name \"edu\", bus PCI"))
  }

  @Test func `the object tree contains devices and objects, and a full path or its last part finds them`() {
    var client = QMPClient()
    func list(_ path: String) -> JSONValue? { client.ask("qom-list", ["path": .string(path)]) }
    func get(_ path: String, _ property: String) -> JSONValue? {
      client.ask("qom-get", ["path": .string(path), "property": .string(property)])
    }
    let type: JSONValue = ["name": "type", "type": "string"]
    #expect(list("/machine/peripheral") == [type, ["name": "e0", "type": "child<edu>"]])
    #expect(list("/machine/peripheral-anon") == [type, ["name": "device[0]", "type": "child<edu>"]])
    #expect(list("/objects") == [type, ["name": "rng0", "type": "child<rng-random>"]])
    #expect(get("/machine/peripheral/e0", "type") == "edu" && get("e0", "dma_mask") == 4095)
    #expect(get("rng0", "filename") == "/dev/urandom" && get("/machine", "type") == "q35-machine")
    #expect(get("/machine", "peripheral") == "/machine/peripheral")
    #expect(
      client.send(#"{"execute": "qom-list", "arguments": {"path": "/nix"}}"#)
        == error("DeviceNotFound", "Device '/nix' not found"))
    #expect(
      client.send(#"{"execute": "qom-get", "arguments": {"path": "e0", "property": "nosuch"}}"#)
        == generic("Property 'edu.nosuch' not found"))
    let tree = HumanCommands.run("info qtree", on: RecordingMachine()).text
    #expect(tree.contains("bus: pcie.0\n  type PCIE\n  dev: edu, id \"e0\"\n"))
    #expect(tree.contains("    dma_mask = 4095 (0xfff)\n") && tree.contains("    addr 00:01.0\n"))
  }
}
