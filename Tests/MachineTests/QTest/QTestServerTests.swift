import Glibc
import Linux
import Synchronization
import TestSupport
import Testing

@testable import Machine

/// A client at a socket, like libqtest.
final class QTestClient {
  private let socket: FileDescriptor
  private var received: [UInt8] = []

  /// Connects to the socket; retries for 20 seconds until a server listens.
  init(path: String) throws {
    let end = Clock.monotonic() + 20_000_000_000
    while true {
      do {
        socket = try FileDescriptor(connectingTo: path)
        return
      } catch {
        if Clock.monotonic() > end { throw error }
        _ = Poll.readable([], milliseconds: 1)
      }
    }
  }

  func send(_ text: String) throws { try socket.write(Array(text.utf8)) }

  /// Returns the next line, or nil at the end.
  func line() throws -> String? {
    while true {
      if let end = received.firstIndex(of: UInt8(ascii: "\n")) {
        defer { received.removeFirst(end + 1) }
        return String(decoding: received[..<end], as: UTF8.self)
      }
      guard Poll.readable([socket.rawValue], milliseconds: 20_000)[0],
        let bytes = try socket.read(count: 4096), !bytes.isEmpty
      else { return nil }
      received += bytes
    }
  }

  func ask(_ text: String) throws -> String? {
    try send(text + "\n")
    return try line()
  }

  /// Returns whether input arrives within a time.
  func hears(milliseconds: Int32) -> Bool {
    !received.isEmpty || Poll.readable([socket.rawValue], milliseconds: milliseconds)[0]
  }
}

private func socket(_ path: String, id: String? = nil) throws -> SocketChardevOptions {
  var options = SocketChardevOptions()
  options.id = try id.map { text throws in try Identifier(text: text) }
  options.path = path
  options.server = true
  options.wait = false
  return options
}

private func socketPath(_ name: String = #function) -> String {
  "/tmp/nestling-qtest-\(getpid())-\(name.prefix { $0 != "(" })"
}

@Suite(.timeLimit(.minutes(5))) struct QTestServerTests {
  /// A server on its own socket.
  private final class Served {
    let board: QTestBoard
    let device: Chardev
    let server: QTestServer
    let path: String

    init(log: QTestOptions.Log = .none, _ name: String = #function) throws {
      path = socketPath(name)
      board = try QTestBoard()
      device = try Chardev(socket(path), on: EventLoop(name: "chardev test"))
      server = try QTestServer(on: device, log: try QTestLog(log), board: board.board, clock: board.clock)
      try device.start()
    }

    func stop() {
      server.stop()
      device.stop()
    }
  }

  @Test("clients are served one after another")
  func oneClientAfterTheOther() throws {
    let served = try Served()
    served.server.resume()
    for round in 0..<3 {
      let client = try QTestClient(path: served.path)
      #expect(try client.ask("writeb 0x1000 \(round)\nreadb 0x1000") == "OK")
      #expect(try client.line() == "OK 0x000000000000000\(round)")
    }
    served.stop()
  }

  @Test("commands wait while the server is paused")
  func commandsWaitWhilePaused() throws {
    let served = try Served()
    let client = try QTestClient(path: served.path)
    try client.send("writeb 0x1000 1\n")
    #expect(!client.hears(milliseconds: 50))
    #expect(try served.board.load(0x1000) == 0)
    served.server.resume()
    #expect(try client.line() == "OK")
    served.server.pause()
    try client.send("writeb 0x1000 2\n")
    #expect(!client.hears(milliseconds: 50))
    // A command that waits does not delay the end.
    served.stop()
    #expect(try served.board.load(0x1000) == 1)
  }

  @Test("interrupts are reported although the client sends nothing")
  func interruptsComeByThemselves() throws {
    let served = try Served()
    served.server.resume()
    let client = try QTestClient(path: served.path)
    #expect(try client.ask("irq_intercept_in ioapic") == "OK")
    let line = served.board.board.makeLine(9)
    line.set(true)
    #expect(try client.line() == "IRQ raise 9")
    line.set(false)
    #expect(try client.line() == "IRQ lower 9")
    served.stop()
  }

  @Test("a line that is too long is refused, and the next line is answered")
  func aLineWithoutEnd() throws {
    let served = try Served()
    served.server.resume()
    let client = try QTestClient(path: served.path)
    let part = String(repeating: "x", count: 1 << 20)
    for _ in 0..<QTestSession.longestLine / part.utf8.count + 2 { try client.send(part) }
    #expect(try client.ask("\nendianness") == "ERR line too long")
    #expect(try client.line() == "OK little")
    served.stop()
  }

  /// A client that sends a command and never reads must not delay the server's end.
  @Test("a client that does not read does not delay the server's end")
  func aClientThatDoesNotRead() throws {
    let served = try Served()
    served.server.resume()
    let client = try QTestClient(path: served.path)
    try client.send("read 0 0x1000000\n")
    #expect(client.hears(milliseconds: 20_000))
    served.stop()
  }

  @Test("the log holds each line with its direction")
  func theLogTellsWhatPassed() throws {
    let log = socketPath() + ".log"
    let served = try Served(log: .file(path: log))
    served.server.resume()
    do {
      let client = try QTestClient(path: served.path)
      #expect(try client.ask("endianness") == "OK little")
    }
    var lines: [Substring] = []
    for _ in 0..<20_000 where lines.count < 4 {
      let text = try FileDescriptor(opening: log, O_RDONLY).read(count: 4096) ?? []
      lines = String(decoding: text, as: UTF8.self).split(separator: "\n")
      _ = Poll.readable([], milliseconds: 1)
    }
    served.stop()
    unlink(log)
    let marks = lines.map { $0.replacing(/\+\d+\.\d{6}/, with: "T") }
    #expect(marks == ["[I T] OPENED", "[R T] endianness", "[S T] OK little", "[I T] CLOSED"])
  }
}

/// Runs a machine without a CPU from its configuration to its end, with a monitor's requests and notices.
@Suite(.serialized, .timeLimit(.minutes(5))) struct RunningMachineTests {
  /// A machine on its own thread.
  private final class Running: Sendable {
    private struct State {
      var control: (any MachineControl)?
      var ending: RunningMachine.Ending?
      var notices: [MachineNotice] = []
      var problem: String?
    }

    private let state = Mutex(State())
    private let thread = Mutex<Thread?>(nil)

    init(_ configuration: MachineConfiguration) throws {
      let thread = try Thread(name: "machine") { [self] in
        do {
          let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
          machine.control.addListener { [self] notice in state.withLock { $0.notices.append(notice) } }
          state.withLock { $0.control = machine.control }
          let ending = try machine.run()
          state.withLock { $0.ending = ending }
        } catch {
          state.withLock { $0.problem = "\(error)" }
        }
      }
      self.thread.withLock { $0 = thread }
    }

    var control: (any MachineControl)? { state.withLock { $0.control } }
    var notices: [MachineNotice] { state.withLock { $0.notices } }

    func ending() throws -> RunningMachine.Ending? {
      thread.withLock { thread in
        thread?.join()
        thread = nil
      }
      if let problem = state.withLock({ $0.problem }) { Issue.record("\(problem)") }
      return state.withLock { $0.ending }
    }
  }

  private func configuration(_ path: String) throws -> MachineConfiguration {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.serials = []
    configuration.chardevs = [try socket(path, id: "qtest")]
    var options = QTestOptions(device: try Identifier(text: "qtest"))
    options.log = .none
    configuration.qtest = options
    return configuration
  }

  private func wait(_ what: String, _ condition: () -> Bool) throws {
    let came = eventually(condition)
    try #require(came, "\(what) did not occur")
  }

  @Test("a reset by the client is complete before its next command")
  func aResetByTheClient() throws {
    let path = socketPath()
    let machine = try Running(try configuration(path))
    let client = try QTestClient(path: path)
    // A reset clears the Interrupt Line register and keeps RAM.
    #expect(try client.ask("outl 0xcf8 0x8000003c") == "OK")
    #expect(try client.ask("outb 0xcfc 0x55") == "OK")
    #expect(try client.ask("inb 0xcfc") == "OK 0x0055")
    #expect(try client.ask("writeb 0x1000 0x66") == "OK")
    // The reset is complete before the next command, however fast that follows.
    try client.send("outb 0xcf9 6\noutl 0xcf8 0x8000003c\ninb 0xcfc\nreadb 0x1000\n")
    #expect(try client.line() == "OK")
    #expect(try client.line() == "OK")
    #expect(try client.line() == "OK 0x0000")
    #expect(try client.line() == "OK 0x0000000000000066")
    #expect(machine.notices == [.reset(.guestReset)])
    machine.control?.requestQuit(.monitorQuit)
    #expect(try machine.ending() == .quit)
    #expect(machine.notices == [.reset(.guestReset), .shutdown(.monitorQuit)])
    #expect(machine.control?.status == .shutdown)
    #expect(try client.line() == nil)
  }

  @Test("a monitor pauses, resets, resumes and powers down the machine")
  func whatAMonitorAsks() throws {
    let path = socketPath()
    let machine = try Running(try configuration(path))
    let client = try QTestClient(path: path)
    #expect(try client.ask("endianness") == "OK little")
    let control = try #require(machine.control)
    #expect(control.status == .running)
    try control.perform(.pause)
    try control.perform(.pause)
    #expect(control.status == .paused)
    // A pause stops the CPUs. The qtest client is not a CPU, so its commands are still answered.
    #expect(try client.ask("endianness") == "OK little")
    control.requestReset()
    try wait("the reset") { machine.notices.contains(.reset(.monitorReset)) }
    #expect(try client.ask("endianness") == "OK little")
    #expect(control.status == .paused)
    try control.perform(.resume)
    #expect(control.status == .running)
    // The power button: PM1_STS bit 8.
    #expect(try client.ask("inw 0x600") == "OK 0x0000")
    control.requestPowerDown()
    #expect(try client.ask("inw 0x600") == "OK 0x0100")
    // S5: SLP_EN, and SLP_TYP 0.
    #expect(try client.ask("outw 0x604 0x2000") == "OK")
    #expect(try machine.ending() == .shutdown)
    #expect(
      machine.notices == [.paused, .reset(.monitorReset), .resumed, .powerDown, .shutdown(.guestShutdown)])
  }

  @Test("with reboot=shutdown the guest's reset ends the machine, and a monitor's does not")
  func aGuestsResetMayBeTheEnd() throws {
    let path = socketPath()
    var configuration = try configuration(path)
    configuration.rebootAction = .shutdown
    let machine = try Running(configuration)
    let client = try QTestClient(path: path)
    #expect(try client.ask("endianness") == "OK little")
    // A monitor's reset does not end the machine.
    machine.control?.requestReset()
    try wait("the reset") { machine.notices == [.reset(.monitorReset)] }
    #expect(try client.ask("outb 0xcf9 6") == "OK")
    #expect(try machine.ending() == .shutdown)
    #expect(machine.notices == [.reset(.monitorReset), .shutdown(.guestReset)])
  }

  /// Several threads send many requests at once.
  @Test("each reset that many threads request is carried out, and the machine runs afterwards")
  func requestsFromManyThreads() throws {
    let path = socketPath()
    let machine = try Running(try configuration(path))
    let client = try QTestClient(path: path)
    #expect(try client.ask("endianness") == "OK little")
    let control = try #require(machine.control)
    let threads = try (0..<4).map { number in
      try Thread(name: "asker \(number)") {
        for _ in 0..<25 {
          control.requestReset()
          control.ask(.pause) { _ in }
          try? control.perform(.resume)
        }
      }
    }
    for round in 0..<50 {
      #expect(try client.ask("writeb 0x1000 \(round)\nreadb 0x1000") == "OK"); _ = try client.line()
    }
    for thread in threads { thread.join() }
    try control.perform(.resume)
    try wait("the resets") { machine.notices.filter { $0 == .reset(.monitorReset) }.count == 100 }
    try wait("the running state") { control.status == .running }
    #expect(try client.ask("endianness") == "OK little")
    control.requestQuit(.monitorQuit)
    #expect(try machine.ending() == .quit)
  }
}
