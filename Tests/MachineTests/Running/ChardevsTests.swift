import Glibc
import Linux
import TestSupport
import Testing

@testable import Machine

/// Adds and removes chardevs while a machine runs.
@Suite struct ChardevsTests {
  private let folder = "/tmp/nestling-chardevs-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  private let devices: Chardevs

  init() throws {
    mkdir(folder, 0o700)
    var cold = NullChardevOptions()
    cold.id = try Identifier(text: "cold")
    let loop = try EventLoop(name: "chardev test")
    devices = try Chardevs([cold], on: loop, interpreter: PassingInterpreter(), interruption: -1) {}
  }

  private func server(_ path: String, wait: Bool = false) -> SocketChardevOptions {
    var options = SocketChardevOptions()
    options.path = path
    options.server = true
    options.wait = wait
    return options
  }

  /// Returns why a device is not added, or nil if it is.
  private func problem(_ options: any ChardevOptions, _ id: Identifier) -> Chardevs.Problem? {
    do throws(Chardevs.Problem) {
      try devices.add(options, id: id)
      return nil
    } catch {
      return error
    }
  }

  private var names: [String] { devices.all.map(\.endpointName) }

  @Test func `files and sockets open when they are added and close when they are removed`() throws {
    let socket = folder + "/socket"
    var file = FileChardevOptions()
    file.path = folder + "/file"
    try devices.add(file, id: try Identifier(text: "f"))
    try devices.add(server(socket), id: try Identifier(text: "s"))
    #expect(access(file.path, F_OK) == 0 && access(socket, F_OK) == 0)
    #expect(names == ["null", "file", "disconnected:unix:\(socket),server=on"])
    var client = SocketChardevOptions()
    client.path = socket
    try devices.add(client, id: try Identifier(text: "c"))
    #expect(names.last == "unix:\(socket)")
    try devices.remove("c")
    try devices.remove("s")
    #expect(access(socket, F_OK) != 0)
    try devices.remove("f")
    #expect(names == ["null"])
    devices.stop()
  }

  @Test func `a chardev with a wrong file, with a used id or after the end is refused and changes nothing`() throws {
    let cold = try Identifier(text: "cold")
    let id = try Identifier(text: "x")
    #expect(problem(server("/x"), cold) == .duplicateID(cold))
    var file = FileChardevOptions()
    file.path = folder + "/missing/file"
    guard case .notOpened(id, let error)? = problem(file, id) else {
      Issue.record("it was opened")
      return
    }
    #expect(error.call == "open" && error.code == ENOENT)
    #expect(throws: Chardevs.Problem.notFound("x")) { try devices.remove("x") }
    // An id is free again after a failure.
    try devices.add(NullChardevOptions(), id: id)
    _ = try SerialConnection(to: try devices.device(id))
    #expect(throws: Chardevs.Problem.inUse("x")) { try devices.remove("x") }
    #expect(names == ["null", "null"])
    devices.stop()
    #expect(problem(NullChardevOptions(), id) == .ended)
  }

  @Test func `a server that waits for its client stops waiting when the machine ends`() throws {
    let path = folder + "/waits"
    let devices = devices
    let options = server(path, wait: true)
    let id = try Identifier(text: "w")
    let ended = Notes<Bool>()
    let thread = try Thread(name: "adds") {
      let opened = (try? devices.add(options, id: id)) != nil
      ended.add(opened)
    }
    #expect(eventually { access(path, F_OK) == 0 })
    #expect(ended.all.isEmpty)
    devices.stop()
    thread.join()
    #expect(ended.all == [false] && access(path, F_OK) != 0)
  }
}
