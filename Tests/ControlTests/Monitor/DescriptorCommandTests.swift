import Glibc
import JSON
import Linux
import TestSupport
import Testing

@testable import Control
@testable import Machine

/// Tests open files that a QMP client passes. The texts are those of QEMU 7.2.
@Suite(.timeLimit(.minutes(5))) struct DescriptorCommandTests {
  private let path = "/tmp/nestling-descriptors-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  private let machine = RecordingMachine()
  private let device: Chardev
  private let monitor: Monitor

  init() throws {
    signal(SIGPIPE, SIG_IGN)
    var options = SocketChardevOptions()
    options.path = path
    options.server = true
    options.wait = false
    device = try Chardev(options, on: EventLoop(name: "chardev test"))
    var monitorOptions = MonitorOptions()
    monitorOptions.mode = .control
    monitor = try Monitor(monitorOptions, at: device, of: machine)
    try device.start()
  }

  /// A client that waits for each answer.
  private final class Client {
    private let file: FileDescriptor
    private var stream = JSONStream(sizeLimit: 16 << 20)
    private var answers: [JSONObject] = []

    init(_ path: String) throws {
      file = try FileDescriptor(connectingTo: path)
      _ = answer()
      _ = ask(#"{"execute": "qmp_capabilities"}"#)
    }

    func send(_ text: String, _ descriptors: [Int32] = []) {
      #expect(TestSupport.send(Array(text.utf8), with: descriptors, over: file.rawValue) == text.utf8.count)
    }

    func answer() -> JSONObject? {
      while answers.isEmpty {
        guard let bytes = try? file.read(count: 65536), !bytes.isEmpty else { return nil }
        stream.receive(bytes) {
          if case .value(.object(let object)) = $0 { answers.append(object) }
          return true
        }
      }
      return answers.removeFirst()
    }

    func ask(_ text: String, _ descriptors: [Int32] = []) -> JSONObject? {
      send(text, descriptors)
      return answer()
    }

    /// Returns the answer, or the text of the error.
    func carryOut(_ name: String, _ arguments: JSONObject = [:], _ descriptors: [Int32] = []) -> JSONValue? {
      let request: JSONObject = ["execute": .string(name), "arguments": .object(arguments)]
      let answer = ask(String(decoding: JSONValue.object(request).text(), as: UTF8.self), descriptors)
      if case .object(let error)? = answer?["error"] {
        #expect(error["class"] == "GenericError")
        return error["desc"]
      }
      return answer?["return"]
    }
  }

  private let none: JSONValue = "No file descriptor supplied via SCM_RIGHTS"

  @Test func `getfd names a descriptor, a later one of that name replaces it, and closefd closes it`() throws {
    let client = try Client(path)
    let first = LeakProbe()
    let second = LeakProbe()
    #expect(client.carryOut("getfd", ["fdname": "a"]) == none)
    #expect(
      client.carryOut("getfd", ["fdname": "1a"], [first.descriptor])
        == "Parameter 'fdname' expects a name not starting with a digit")
    #expect(client.carryOut("getfd", ["fdname": "a"]) == none)
    #expect(client.carryOut("getfd", ["fdname": "a"], [first.descriptor]) == [:])
    first.letGo()
    #expect(!first.isClosed)
    #expect(client.carryOut("getfd", ["fdname": "a"], [second.descriptor]) == [:])
    second.letGo()
    #expect(first.isClosed && !second.isClosed)
    #expect(client.carryOut("closefd", ["fdname": "b"]) == "File descriptor named 'b' not found")
    #expect(client.carryOut("closefd", ["fdname": "a"]) == [:])
    #expect(second.isClosed)
    // The commands of the human monitor, on the same connection.
    let third = LeakProbe()
    func human(_ line: String, _ descriptors: [Int32] = []) -> JSONValue? {
      client.carryOut("human-monitor-command", ["command-line": .string(line)], descriptors)
    }
    #expect(human("getfd h") == "Error: No file descriptor supplied via SCM_RIGHTS\r\n")
    #expect(human("getfd h", [third.descriptor]) == "")
    third.letGo()
    #expect(human("closefd g") == "Error: File descriptor named 'g' not found\r\n")
    #expect(!third.isClosed && human("closefd h") == "" && third.isClosed)
    device.stop()
  }

  @Test func `descriptors that no command takes are closed, however many there are`() throws {
    let client = try Client(path)
    let probes = (0..<250).map { _ in LeakProbe() }
    #expect(client.carryOut("query-status", [:], probes[..<200].map(\.descriptor)) != nil)
    for probe in probes[..<200] { probe.letGo() }
    // At most the descriptors of one message wait for a command.
    #expect(probes[..<200].count { !$0.isClosed } <= FileDescriptor.passedLimit)
    #expect(client.carryOut("getfd", ["fdname": "kept"], probes[200...].map(\.descriptor)) == [:])
    for probe in probes[200...] { probe.letGo() }
    #expect(probes.count { !$0.isClosed } == 1 && !probes[200].isClosed)
    #expect(client.carryOut("closefd", ["fdname": "kept"]) == [:])
    #expect(probes.allSatisfy { $0.isClosed })
    device.stop()
  }

  @Test func `when the connection ends, descriptors that no command took are closed, and named ones stay open`() throws
  {
    let probe = LeakProbe()
    let named = LeakProbe()
    do {
      let client = try Client(path)
      #expect(client.carryOut("getfd", ["fdname": "a"], [named.descriptor]) == [:])
      // Half a request, which never completes.
      client.send("{", [probe.descriptor])
    }
    probe.letGo()
    named.letGo()
    #expect(eventually { probe.isClosed })
    let client = try Client(path)
    #expect(!named.isClosed)
    #expect(client.carryOut("closefd", ["fdname": "a"]) == [:])
    #expect(named.isClosed)
    device.stop()
  }

  @Test func `each of several requests sent at once gets its own descriptor`() throws {
    let client = try Client(path)
    // The answers exceed the buffer for a client that does not read, and the requests fit into the socket.
    let probes = (0..<30).map { _ in LeakProbe() }
    for (index, probe) in probes.enumerated() {
      client.send(#"{"execute": "query-qmp-schema"}{"execute": "query-qmp-schema"}"#)
      client.send(#"{"execute": "getfd", "arguments": {"fdname": "n\#(index)"}, "id": \#(index)}"#, [probe.descriptor])
    }
    for probe in probes { probe.letGo() }
    for _ in 0..<90 { _ = try #require(client.answer()) }
    for (index, probe) in probes.enumerated().reversed() {
      #expect(!probe.isClosed)
      #expect(client.carryOut("closefd", ["fdname": .string("n\(index)")]) == [:])
      #expect(probe.isClosed)
    }
    device.stop()
  }

  @Test func `add-fd keeps descriptors in sets, which are removed with the last client`() throws {
    let probes = (0..<4).map { _ in LeakProbe() }
    do {
      let client = try Client(path)
      #expect(client.carryOut("add-fd") == none)
      #expect(client.carryOut("query-fdsets") == [])
      func add(_ probe: LeakProbe, _ arguments: JSONObject = [:]) -> (set: JSONValue?, number: JSONValue?) {
        guard case .object(let object)? = client.carryOut("add-fd", arguments, [probe.descriptor]) else {
          return (nil, nil)
        }
        probe.letGo()
        return (object["fdset-id"], object["fd"])
      }
      let first = add(probes[0])
      let second = add(probes[1], ["fdset-id": 0, "opaque": "hello"])
      let third = add(probes[2], ["fdset-id": 7])
      let fourth = add(probes[3])
      #expect(first.set == 0 && second.set == 0 && third.set == 7 && fourth.set == 1)
      guard let a = first.number, let b = second.number, let c = third.number, let d = fourth.number else {
        Issue.record("no number")
        return
      }
      #expect(
        client.carryOut("query-fdsets") == [
          ["fds": [["fd": b, "opaque": "hello"], ["fd": a]], "fdset-id": 0],
          ["fds": [["fd": d]], "fdset-id": 1], ["fds": [["fd": c]], "fdset-id": 7],
        ])
      let extra = LeakProbe()
      #expect(
        client.carryOut("add-fd", ["fdset-id": -5], [extra.descriptor])
          == "Parameter 'fdset-id' expects a non-negative value")
      extra.letGo()
      #expect(extra.isClosed)
      #expect(
        client.carryOut("remove-fd", ["fdset-id": 9]) == "File descriptor named 'fdset-id:9' not found")
      #expect(
        client.carryOut("remove-fd", ["fdset-id": 0, "fd": 99999])
          == "File descriptor named 'fdset-id:0, fd:99999' not found")
      #expect(client.carryOut("remove-fd", ["fdset-id": 0, "fd": a]) == [:])
      #expect(probes[0].isClosed && !probes[1].isClosed)
      #expect(client.carryOut("remove-fd", ["fdset-id": 7]) == [:])
      #expect(probes[2].isClosed && !probes[3].isClosed)
    }
    #expect(eventually { probes.allSatisfy { $0.isClosed } })
    #expect(machine.descriptors.sets.all.isEmpty)
    device.stop()
  }

  @Test func `a node opens the file of a set that has the same access mode`() throws {
    let image = path + ".img"
    defer { unlink(image) }
    try FileDescriptor(opening: image, O_WRONLY | O_CREAT, mode: 0o600).write([1])
    let both = try FileDescriptor(opening: image, O_RDWR)
    let reading = try FileDescriptor(opening: image, O_RDONLY)
    let client = try Client(path)
    #expect(client.carryOut("add-fd", ["fdset-id": 3], [reading.rawValue]) == ["fdset-id": 3, "fd": number(in: 3)])
    func add(_ file: String, _ name: String, readOnly: Bool = false) -> JSONValue? {
      client.carryOut(
        "blockdev-add",
        ["driver": "file", "node-name": .string(name), "filename": .string(file), "read-only": .bool(readOnly)])
    }
    #expect(add("/dev/fdset/3", "n") == "Could not dup FD for /dev/fdset/3 flags 2: Permission denied")
    #expect(add("/dev/fdset/4", "n") == "Could not dup FD for /dev/fdset/4 flags 2: No such file or directory")
    #expect(add("/dev/fdset/x", "n") == "Could not parse fdset /dev/fdset/x")
    #expect(machine.requests.isEmpty)
    #expect(add("/dev/fdset/3", "n", readOnly: true) == [:])
    #expect(client.carryOut("add-fd", ["fdset-id": 3], [both.rawValue]) != none)
    #expect(add("/dev/fdset/3", "m") == [:])
    #expect(machine.requests.count == 2 && machine.requests.allSatisfy { $0.contains("/dev/fdset/3") })
    #expect(client.carryOut("remove-fd", ["fdset-id": 3]) == [:])
    // The recording machine keeps only the text of a request, and no duplicate.
    #expect(client.carryOut("query-fdsets") == [])
    device.stop()
  }

  private func number(in set: Int64) -> JSONValue {
    let members = machine.descriptors.sets.all.first { $0.id == set }?.members ?? []
    return .integer(Int64(members.first?.file.rawValue ?? -1))
  }

  @Test func `a device and an object take over a named descriptor from the monitor`() throws {
    let client = try Client(path)
    let file = LeakProbe()
    #expect(client.carryOut("getfd", ["fdname": "dev"], [file.descriptor]) == [:])
    #expect(client.carryOut("getfd", ["fdname": "iommu"], [file.descriptor]) == [:])
    file.letGo()
    #expect(client.carryOut("object-add", ["qom-type": "iommufd", "id": "i0", "fd": "iommu"]) == [:])
    #expect(client.carryOut("closefd", ["fdname": "iommu"]) == "File descriptor named 'iommu' not found")
    #expect(client.carryOut("device_add", ["driver": "vfio-pci", "iommufd": "i0", "fd": "dev"]) == [:])
    #expect(client.carryOut("closefd", ["fdname": "dev"]) == "File descriptor named 'dev' not found")
    // The recording machine keeps only text, so both files are closed.
    #expect(file.isClosed)
    #expect(machine.requests.count == 2 && machine.requests.allSatisfy { $0.contains("PassedDescriptor") })
    device.stop()
  }
}
