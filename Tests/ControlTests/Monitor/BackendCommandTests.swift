import JSON
import Machine
import Testing

@testable import Control

/// Compares `object-add`, `blockdev-add` and related commands with QEMU 7.2, word for word.
@Suite struct BackendCommandTests {
  private func generic(_ text: String) -> [String] {
    [#"{"error": {"class": "GenericError", "desc": "\#(text)"}}"#]
  }

  @Test func `a node is described with typed values and nested objects`() {
    var client = QMPClient()
    func add(_ arguments: String) -> [String] {
      client.send(#"{"execute": "blockdev-add", "arguments": \#(arguments)}"#)
    }
    let done = [#"{"return": {}}"#]
    #expect(add(#"{"driver": "file", "node-name": "f", "filename": "/a,b", "cache": {"direct": false}}"#) == done)
    #expect(add(#"{"driver": "raw", "node-name": "r", "file": "f", "discard": "unmap"}"#) == done)
    let inner = #"{"driver": "file", "filename": "/c", "locking": "off"}"#
    #expect(add(#"{"driver": "raw", "node-name": "i", "file": \#(inner), "read-only": true}"#) == done)
    #expect(
      client.machine.requests == [
        "add \(BlockNode(id: "f", path: "/a,b", driver: .file))",
        "add \(BlockNode(id: "r", path: "", discardUnmaps: true, underlying: "f"))",
        "add \(BlockNode(id: "i", path: "/c", readOnly: true, locking: .off))",
      ])
  }

  @Test func `an error in a node has QEMU's words`() {
    var client = QMPClient()
    let cases: [(String, String)] = [
      ("{}", "Parameter 'driver' is missing"),
      (#"{"driver": "foo"}"#, "Parameter 'driver' does not accept value 'foo'"),
      (#"{"driver": "file", "node-name": "f"}"#, "Parameter 'filename' is missing"),
      (#"{"driver": "file", "filename": "/a"}"#, "'node-name' must be specified for the root node"),
      (#"{"driver": "raw", "node-name": "r"}"#, "Parameter 'file' is missing"),
      (
        #"{"driver": "raw", "node-name": "r", "file": {"driver": "file"}}"#,
        "Parameter 'file.filename' is missing"
      ),
      (
        #"{"driver": "file", "node-name": "h", "filename": "/a", "read-only": "on"}"#,
        "Invalid parameter type for 'read-only', expected: boolean"
      ),
      (
        #"{"driver": "file", "node-name": "h", "filename": 7}"#,
        "Invalid parameter type for 'filename', expected: string"
      ),
      (#"{"driver": "file", "node-name": "h", "filename": "/a", "nosuch": 1}"#, "Parameter 'nosuch' is unexpected"),
      (#"{"driver": "raw", "node-name": "h", "file.driver": "file"}"#, "Parameter 'file.driver' is unexpected"),
      (#"{"driver": "file", "node-name": "1h", "filename": "/a"}"#, "Invalid node-name: '1h'"),
      (
        #"{"driver": "file", "node-name": "h", "filename": "/a", "discard": "x"}"#,
        "Parameter 'discard' does not accept value 'x'"
      ),
    ]
    for (arguments, text) in cases {
      #expect(
        client.send(#"{"execute": "blockdev-add", "arguments": \#(arguments)}"#) == generic(text), "\(arguments)")
    }
    #expect(client.machine.requests.isEmpty)
  }

  @Test func `an object is described with typed values`() {
    var client = QMPClient()
    func add(_ arguments: String) -> [String] {
      client.send(#"{"execute": "object-add", "arguments": \#(arguments)}"#)
    }
    #expect(add(#"{"qom-type": "rng-random", "id": "b", "filename": "/dev/hwrng"}"#) == [#"{"return": {}}"#])
    var random = RNGRandomOptions()
    random.id = try? Identifier(text: "b")
    random.path = "/dev/hwrng"
    #expect(client.ask("object-del", ["id": "b"]) == [:])
    #expect(client.machine.requests == ["add \(random)", "remove object b"])
    let cases: [(String, String)] = [
      ("{}", "Parameter 'qom-type' is missing"),
      (#"{"qom-type": "foo", "id": "a"}"#, "Parameter 'qom-type' does not accept value 'foo'"),
      // RAM belongs to the machine from its start.
      (
        #"{"qom-type": "memory-backend-memfd", "id": "a"}"#,
        "Parameter 'qom-type' does not accept value 'memory-backend-memfd'"
      ),
      (#"{"qom-type": "rng-random"}"#, "Parameter 'id' is missing"),
      (#"{"qom-type": "rng-random", "id": "1b"}"#, "Parameter 'id' expects an identifier"),
      (
        #"{"qom-type": "rng-random", "id": "b", "filename": 1}"#,
        "Invalid parameter type for 'filename', expected: string"
      ),
      (#"{"qom-type": "rng-random", "id": "b", "nosuch": 1}"#, "Parameter 'nosuch' is unexpected"),
    ]
    for (arguments, text) in cases { #expect(add(arguments) == generic(text), "\(arguments)") }
    #expect(
      client.send(#"{"execute": "object-del", "arguments": {"id": "1"}}"#) == generic("object '1' not found"))
  }

  @Test func `the machine's refusals have QEMU's words`() throws {
    let id = try Identifier(text: "a")
    let cases: [(RequestError, String)] = [
      (.node(.duplicateID("f")), "Duplicate nodes with node-name='f'"),
      (.node(.unknownUnderlying("nix", known: [])), "Cannot find device='nix' nor node-name='nix'"),
      (.backend(.noSuchNode("nix")), "Failed to find node with node-name='nix'"),
      (.backend(.nodeInUse("r", by: .device(typeName: "virtio-blk-pci", id: nil))), "Node r is in use"),
      (.backend(.nodeInUse("f", by: .node("r"))), "Block device f is in use"),
      (.backend(.duplicateObject(id)), "attempt to add duplicate property 'a' to object (type 'container')"),
      (.backend(.noSuchObject(id)), "object 'a' not found"),
      (.backend(.objectInUse(id)), "object 'a' is in use, can not be deleted"),
      (.noDescriptor("5"), "File descriptor named '5' has not been found"),
    ]
    for (error, text) in cases { #expect(MonitorError(error) == .generic(text)) }
  }

  @Test func `nodes are listed as in QEMU`() {
    var client = QMPClient()
    guard case .array(let disks)? = client.ask("query-block"), case .object(let disk)? = disks.first,
      case .object(let inserted)? = disk["inserted"],
      case .array(let nodes)? = client.ask("query-named-block-nodes", ["flat": true]),
      case .object(let first)? = nodes.first
    else {
      Issue.record("no nodes")
      return
    }
    #expect(disks.count == 1 && nodes.count == 2)
    #expect(disk["qdev"] == "/machine/peripheral/d0/virtio-backend" && disk["device"] == "")
    #expect(inserted["node-name"] == "r" && inserted["ro"] == true && inserted["drv"] == "raw")
    #expect(first["node-name"] == "f" && first["drv"] == "file" && first["file"] == "/a.img")
    #expect(first["image"] == ["virtual-size": 4096, "filename": "/a.img", "format": "file"])
  }

  @Test func `a node is resized by its name or as a device, and refusals have QEMU's words`() {
    var client = QMPClient()
    let cases: [(String, String)] = [
      ("{}", "Parameter 'size' is missing"),
      (#"{"size": 1}"#, "Cannot find device='' nor node-name=''"),
      (#"{"device": "x", "size": 1}"#, "Cannot find device='x' nor node-name=''"),
      (#"{"node-name": "x", "size": 1}"#, "Cannot find device='' nor node-name='x'"),
      (#"{"node-name": "f", "size": -1}"#, "Parameter 'size' expects a >0 size"),
      (#"{"node-name": "f", "size": "1M"}"#, "Invalid parameter type for 'size', expected: integer"),
      (#"{"node-name": "r", "size": 8192}"#, "Image is read-only"),
    ]
    for (arguments, text) in cases {
      #expect(
        client.send(#"{"execute": "block_resize", "arguments": \#(arguments)}"#) == generic(text), "\(arguments)")
    }
    #expect(client.machine.requests.isEmpty)
    #expect(client.ask("block_resize", ["node-name": "f", "size": 8192]) == [:])
    #expect(client.ask("block_resize", ["device": "f", "node-name": "x", "size": 0]) == [:])
    func human(_ line: String) -> String { HumanCommands.run(line, on: client.machine).text }
    // Without a unit the size is in MiB.
    #expect(human("block_resize f 2") == "" && human("block_resize f 4k") == "")
    #expect(human("block_resize x 1M") == "Error: Cannot find device='x' nor node-name=''\n")
    #expect(human("block_resize f").hasPrefix("block_resize: "))
    #expect(
      client.machine.requests == [
        "resize f to 8192", "resize f to 0", "resize f to 2097152", "resize f to 4096",
      ])
  }

  @Test func `the human monitor shows and changes backends as in QEMU`() {
    let machine = RecordingMachine()
    func human(_ line: String) -> String { HumanCommands.run(line, on: machine).text }
    let attached = """
      r: /a.img (raw, read-only)
          Attached to:      /machine/peripheral/d0/virtio-backend
          Cache mode:       writeback

      """
    let file = "f: /a.img (file)\n    Cache mode:       writeback\n"
    #expect(human("info block") == attached)
    #expect(human("info block f") == file && human("info block nix") == "")
    #expect(human("info block -n") == file + "\nr: /a.img (raw, read-only)\n    Cache mode:       writeback\n")
    #expect(human("object_add rng-builtin,id=k") == "" && human("object_del k") == "")
    #expect(machine.requests.count == 2 && machine.requests.last == "remove object k")
    #expect(human("object_add rng-builtin") == "Error: Parameter 'id' is missing\n")
    #expect(human("object_add foo,id=q") == "Error: Parameter 'qom-type' does not accept value 'foo'\n")
    #expect(human("object_add rng-random,id=n,nosuch=3") == "Error: Parameter 'nosuch' is unexpected\n")
    #expect(human("object_add").hasPrefix("object_add: string expected\n"))
  }
}
