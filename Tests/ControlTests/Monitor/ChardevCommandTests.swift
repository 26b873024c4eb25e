import JSON
import Machine
import Testing

@testable import Control

/// Compares `chardev-add` and `chardev-remove` with QEMU 7.2, word for word.
@Suite struct ChardevCommandTests {
  private func generic(_ text: String) -> [String] {
    [#"{"error": {"class": "GenericError", "desc": "\#(text)"}}"#]
  }

  @Test func `chardevs are described as QEMU's clients do`() throws {
    var client = QMPClient()
    let done = [#"{"return": {}}"#]
    func add(_ id: String, _ backend: String) -> [String] {
      client.send(#"{"execute": "chardev-add", "arguments": {"id": "\#(id)", "backend": \#(backend)}}"#)
    }
    #expect(add("n", #"{"type": "null", "data": {}}"#) == done)
    #expect(add("f", #"{"type": "file", "data": {"out": "/o", "append": true}}"#) == done)
    #expect(
      add("s", #"{"type": "socket", "data": {"addr": {"type": "unix", "data": {"path": "/s"}}}}"#) == done)
    let address = #"{"type": "inet", "data": {"host": "localhost", "port": "4000"}}"#
    #expect(add("t", #"{"type": "socket", "data": {"addr": \#(address), "server": false}}"#) == done)
    #expect(client.ask("chardev-remove", ["id": "n"]) == [:])
    var file = FileChardevOptions()
    file.path = "/o"
    file.append = true
    var server = SocketChardevOptions()
    server.path = "/s"
    server.server = true
    // Unlike on the command line, the server does not wait for a client.
    server.wait = false
    var connecting = SocketChardevOptions()
    connecting.host = "localhost"
    connecting.port = 4000
    #expect(
      client.machine.requests == [
        "add n: \(NullChardevOptions())", "add f: \(file)", "add s: \(server)", "add t: \(connecting)",
        "remove chardev n",
      ])
  }

  @Test func `an error in a chardev has QEMU's words`() {
    var client = QMPClient()
    let unix = #"{"type": "unix", "data": {"path": "/s"}}"#
    let cases: [(String, String)] = [
      ("{}", "Parameter 'id' is missing"),
      (#"{"id": "c1"}"#, "Parameter 'backend' is missing"),
      (#"{"id": "c1", "backend": {}}"#, "Parameter 'backend.type' is missing"),
      (#"{"id": "c1", "backend": {"type": "nix"}}"#, "Parameter 'type' does not accept value 'nix'"),
      (#"{"id": "c1", "backend": {"type": "null"}}"#, "Parameter 'backend.data' is missing"),
      (#"{"id": "c1", "backend": {"type": "file", "data": {}}}"#, "Parameter 'backend.data.out' is missing"),
      (
        #"{"id": "c1", "backend": {"type": "socket", "data": {"server": false}}}"#,
        "Parameter 'backend.data.addr' is missing"
      ),
      (
        #"{"id": "c1", "backend": {"type": "socket", "data": {"addr": {"type": "inet", "data": "#
          + #"{"host": "h", "port": 1}}}}}"#,
        "Invalid parameter type for 'backend.data.addr.data.port', expected: string"
      ),
      (
        #"{"id": "c1", "backend": {"type": "socket", "data": {"addr": \#(unix), "server": false, "wait": true}}}"#,
        "Failed to add chardev 'c1': 'wait' option is incompatible with socket in client connect mode"
      ),
      (
        #"{"id": "c1", "backend": {"type": "null", "data": {"x": 1}}}"#,
        "Parameter 'backend.data.x' is unexpected"
      ),
      (#"{"id": "c0", "backend": {"type": "null", "data": {}}}"#, "Chardev with id 'c0' already exists"),
      (#"{"id": "1c", "backend": {"type": "null", "data": {}}}"#, "Parameter 'id' expects an identifier"),
    ]
    for (arguments, text) in cases {
      #expect(client.send(#"{"execute": "chardev-add", "arguments": \#(arguments)}"#) == generic(text), "\(arguments)")
    }
    #expect(
      client.send(#"{"execute": "chardev-remove", "arguments": {"id": "c0"}}"#) == generic("Chardev 'c0' is busy"))
    #expect(MonitorError(chardev: .notFound("nix")) == .generic("Chardev 'nix' not found"))
    #expect(client.machine.requests.isEmpty)
  }

  @Test func `the human monitor adds and removes chardevs as on the command line`() {
    let machine = RecordingMachine()
    func human(_ line: String) -> String { HumanCommands.run(line, on: machine).text }
    #expect(human("chardev-add null,id=q") == "" && human("chardev-remove q") == "")
    #expect(machine.requests == ["add q: \(NullChardevOptions())", "remove chardev q"])
    #expect(human("chardev-add foo,id=q") == "Error: 'foo' is not a valid char driver name\n")
    #expect(human("chardev-remove c0") == "Error: Chardev 'c0' is busy\n")
  }
}
