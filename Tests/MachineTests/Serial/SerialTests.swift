import Devices
import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import Machine

private func makePipe() -> (reader: Int32, writer: Int32) {
  signal(SIGPIPE, SIG_IGN)
  var ends: [Int32] = [0, 0]
  #expect(pipe(&ends) == 0)
  return (ends[0], ends[1])
}

/// Reads until `count` bytes have arrived or the input ends.
private func readAll(_ descriptor: Int32, _ count: Int = .max) -> [UInt8] {
  var bytes: [UInt8] = []
  var buffer = [UInt8](repeating: 0, count: 65536)
  while bytes.count < count {
    let got = read(descriptor, &buffer, min(buffer.count, count - bytes.count))
    if got <= 0 { break }
    bytes += buffer[..<got]
  }
  return bytes
}

extension ChardevOutputBuffer {
  fileprivate func write(_ text: String) { #expect(write(Array(text.utf8))) }
}

@Suite(.timeLimit(.minutes(5))) struct ChardevOutputBufferTests {
  /// The loop that writes: the buffer's own, to a blocking pipe, or a shared one, to a non-blocking pipe.
  enum Place: CaseIterable {
    case ownLoop, sharedLoop
  }

  private func target(_ writer: Int32, _ place: Place) -> ChardevOutputBuffer.Target {
    let file = FileDescriptor(owning: writer)
    guard place == .sharedLoop else { return ChardevOutputBuffer.Target(file) }
    file.makeNonBlocking()
    return ChardevOutputBuffer.Target(file, mayBlock: false)
  }

  private func open(_ target: ChardevOutputBuffer.Target?, _ place: Place) throws -> ChardevOutputBuffer {
    try ChardevOutputBuffer(to: target, on: place == .sharedLoop ? EventLoop(name: "output test") : nil)
  }

  private func pattern(_ count: Int) -> [UInt8] { (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 31 ^ $0 >> 7) } }

  @Test("bytes come out in order", arguments: Place.allCases)
  func bytesComeOutInOrder(_ place: Place) throws {
    let pipe = makePipe()
    let output = try open(target(pipe.writer, place), place)
    let bytes = pattern(200_000)
    let writer = try Thread(name: "writer") { for byte in bytes { _ = output.write(byte) } }
    #expect(readAll(pipe.reader, bytes.count) == bytes)
    writer.join()
    output.write("Ende\n")
    #expect(readAll(pipe.reader, 5) == Array("Ende\n".utf8))
    output.stop()
    close(pipe.reader)
  }

  @Test("buffered bytes are written when the output stops", arguments: Place.allCases)
  func whatIsLeftIsWrittenAtTheEnd(_ place: Place) throws {
    let pipe = makePipe()
    // A pipe has 16 pages. A write that does not fit into the rest of a page begins a new page. Therefore only 32 KiB
    // are certain to fit.
    let bytes = pattern(30_000)
    do {
      let output = try open(target(pipe.writer, place), place)
      for byte in bytes { _ = output.write(byte) }
      output.stop()
    }
    #expect(readAll(pipe.reader, bytes.count) == bytes)
    close(pipe.reader)
  }

  @Test("after stop nothing is written", arguments: Place.allCases)
  func stopped(_ place: Place) throws {
    let pipe = makePipe()
    let output = try open(target(pipe.writer, place), place)
    output.write("before")
    output.stop()
    output.write("after")
    try output.setTarget(nil)
    #expect(readAll(pipe.reader) == Array("before".utf8))
    close(pipe.reader)
  }

  @Test("without a reader writes do not wait, the buffer is bounded and stopping returns", arguments: Place.allCases)
  func nobodyReads(_ place: Place) throws {
    let pipe = makePipe()
    let bytes = pattern(3 << 20)
    do {
      let output = try open(target(pipe.writer, place), place)
      for byte in bytes { _ = output.write(byte) }
      output.stop()
    }
    #expect(fcntl(pipe.reader, F_SETFL, O_NONBLOCK) == 0)
    let seen = readAll(pipe.reader)
    // The pipe holds the first bytes, without a gap.
    #expect(seen.count >= 4096 && seen.count < 1 << 20)
    #expect(seen == Array(bytes.prefix(seen.count)))
    close(pipe.reader)
  }

  @Test("a late reader gets the first bytes", arguments: Place.allCases)
  func aReaderThatIsLateGetsTheFirstBytes(_ place: Place) throws {
    let pipe = makePipe()
    let bytes = pattern(4 << 20)
    let output = try open(target(pipe.writer, place), place)
    for byte in bytes { _ = output.write(byte) }
    let seen = readAll(pipe.reader, 1 << 20)
    #expect(seen == Array(bytes.prefix(1 << 20)))
    let drainer = try Thread(name: "drainer") { _ = readAll(pipe.reader) }
    output.stop()
    // The last owner closes the writing end, and the reading thread sees the end of the file.
    try output.setTarget(nil)
    drainer.join()
    close(pipe.reader)
  }

  @Test("a refused byte can be written once there is room, and no byte is lost", arguments: Place.allCases)
  func roomComes(_ place: Place) throws {
    let pipe = makePipe()
    let output = try open(target(pipe.writer, place), place)
    let bytes = pattern(3 << 20)
    let room = try EventDescriptor()
    output.onRoom { room.signal() }
    var refusals = 0
    var written = 0
    let seen = Notes<[UInt8]>()
    var reader: Thread?
    for byte in bytes {
      while !output.write(byte) {
        refusals += 1
        if reader == nil {
          reader = try Thread(name: "reader") { seen.add(readAll(pipe.reader, bytes.count)) }
        }
        room.wait()
      }
      written += 1
    }
    #expect(refusals > 0 && written == bytes.count)
    reader?.join()
    #expect(seen.all == [bytes])
    output.stop()
    close(pipe.reader)
  }

  @Test(
    "an answer is always accepted; its sender waits until most of it is read or the reader leaves",
    arguments: Place.allCases)
  func answers(_ place: Place) throws {
    let pipe = makePipe()
    let output = try open(target(pipe.writer, place), place)
    let room = try EventDescriptor()
    output.onRoom { room.signal() }
    let bytes = pattern(1 << 20)
    let first = output.send(bytes)
    let second = output.send(bytes)
    #expect(output.isBehind(first) && output.isBehind(second))
    #expect(!output.write(bytes))
    #expect(readAll(pipe.reader, bytes.count) == bytes)
    while output.isBehind(first) { room.wait() }
    #expect(output.isBehind(second))
    #expect(readAll(pipe.reader, bytes.count) == bytes)
    while output.isBehind(second) { room.wait() }
    let third = output.send(bytes)
    #expect(output.isBehind(third))
    try output.setTarget(nil)
    #expect(room.take() && !output.isBehind(third) && output.write(1))
    output.stop()
    close(pipe.reader)
  }

  @Test("without a target bytes are dropped", arguments: Place.allCases)
  func withoutATargetBytesAreDropped(_ place: Place) throws {
    let pipe = makePipe()
    let output = try open(nil, place)
    output.write("lost")
    try output.setTarget(target(pipe.writer, place))
    output.write("kept")
    #expect(readAll(pipe.reader, 4) == Array("kept".utf8))
    output.stop()
    close(pipe.reader)
  }

  @Test("output goes to a new target after the reader of the old one has left", arguments: Place.allCases)
  func aReaderThatGoesIsNoHarm(_ place: Place) throws {
    let first = makePipe()
    let second = makePipe()
    let output = try open(target(first.writer, place), place)
    close(first.reader)
    for _ in 0..<100 { output.write("into the void ") }
    usleep(50_000)
    try output.setTarget(target(second.writer, place))
    output.write("!")
    var last: UInt8 = 0
    while last != UInt8(ascii: "!"), let byte = readAll(second.reader, 1).first { last = byte }
    #expect(last == UInt8(ascii: "!"))
    output.stop()
    close(second.reader)
  }
}

@Suite(.serialized, .timeLimit(.minutes(5))) struct SerialConnectionTests {
  private struct Passing: InputInterpreter {
    let onlyFrontendText = "alone"

    mutating func receive(
      _ bytes: ArraySlice<UInt8>, guestBytes: inout [UInt8]
    ) -> (used: Int, action: InputAction?) {
      for (used, byte) in zip(1..., bytes) {
        if byte == UInt8(ascii: "!") { return (used, .exit) }
        if byte == UInt8(ascii: "#") { return (used, .switchFocus) }
        guestBytes.append(byte)
      }
      return (bytes.count, nil)
    }
  }

  private final class Connection {
    let device: Chardev
    private let serial: SerialConnection

    init(_ device: Chardev, _ serial: SerialConnection) {
      self.device = device
      self.serial = serial
    }

    func stop() {
      device.stop()
      serial.connect(nil)
    }
  }

  private let events: EventQueue
  private let loop: EventLoop
  private let path: String

  init() throws {
    signal(SIGPIPE, SIG_IGN)
    events = try EventQueue()
    loop = try EventLoop(name: "chardev test")
    path = "/tmp/nestling-serial-\(getpid())"
    unlink(path)
  }

  private func socket(_ path: String, server: Bool, wait: Bool? = nil) -> SocketChardevOptions {
    var options = SocketChardevOptions()
    options.path = path
    options.server = server
    options.wait = wait
    return options
  }

  private func file(_ path: String) -> FileChardevOptions {
    var options = FileChardevOptions()
    options.path = path
    return options
  }

  private func open(_ options: any ChardevOptions, interruption: Int32? = nil) throws(SystemError) -> Chardev {
    let events = events
    return try Chardev(
      options, on: loop, interpreter: Passing(), interruption: interruption, onExit: { events.post(.quit(.terminal)) })
  }

  private func connect(_ options: any ChardevOptions) throws -> (Connection, SerialPort) {
    let device = try open(options)
    let serial = try SerialConnection(to: device)
    let port = SerialPort(output: serial, interrupt: RecordingLine())
    serial.connect(port)
    try device.start()
    return (Connection(device, serial), port)
  }

  private func send(_ text: String, from port: SerialPort) { for byte in text.utf8 { port.writeByte(byte, at: 0) } }

  /// Returns what the guest reads, and waits up to 20 seconds for it.
  private func receive(_ count: Int, at port: SerialPort) -> String {
    var bytes: [UInt8] = []
    for _ in 0..<20_000 where bytes.count < count {
      // Line Status: Data Ready.
      if port.readByte(at: 5) & 1 != 0 { bytes.append(port.readByte(at: 0)) } else { usleep(1_000) }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  private func text(_ client: borrowing FileDescriptor, _ count: Int) -> String {
    String(decoding: readAll(client.rawValue, count), as: UTF8.self)
  }

  @Test("a file gets the output, and a file that cannot be opened is an error")
  func aFileGetsTheOutput() throws {
    let (connection, port) = try connect(self.file(path))
    send("hello\n", from: port)
    connection.stop()
    let file = try FileDescriptor(opening: path, O_RDONLY)
    let seen = text(file, 100)
    #expect(seen == "hello\n")
    unlink(path)
    let error = #expect(throws: SystemError.self) {
      try open(self.file("/nosuch/file"))
    }
    #expect(error?.code == ENOENT)
  }

  @Test("a socket serves one client after another, and is removed at the end")
  func aSocketServesOneClientAfterTheOther() throws {
    let (connection, port) = try connect(socket(path, server: true, wait: false))
    for round in 0..<3 {
      let client = try FileDescriptor(connectingTo: path)
      try client.write(Array("in \(round)".utf8))
      #expect(receive(4, at: port) == "in \(round)")
      send("out \(round)", from: port)
      let seen = text(client, 5)
      #expect(seen == "out \(round)")
    }
    connection.stop()
    #expect(access(path, F_OK) != 0)
  }

  /// A client sends more than the guest reads, and leaves. The next client is served, and no input is lost.
  @Test("unread input of a client that left does not block the next client")
  func aClientThatLeavesUnreadInputDoesNotBlockTheNext() throws {
    let (connection, port) = try connect(socket(path, server: true, wait: false))
    do {
      let client = try FileDescriptor(connectingTo: path)
      try client.write(Array("left behind".utf8))
    }
    let next = try FileDescriptor(connectingTo: path)
    // Output reaches a client only after it was accepted. This loop waits for that.
    var seen = ""
    for _ in 0..<5_000 where seen.isEmpty {
      send("x", from: port)
      var poll = pollfd(fd: next.rawValue, events: Int16(POLLIN), revents: 0)
      if Glibc.poll(&poll, 1, 2) > 0 { seen = text(next, 1) }
    }
    #expect(seen == "x")
    try next.write(Array(" and more".utf8))
    #expect(receive(20, at: port) == "left behind and more")
    connection.stop()
  }

  @Test("a guest that polls THRE waits for a late reader, loses no byte, and goes on when the reader leaves")
  func aClientThatReadsLate() throws {
    let (connection, port) = try connect(socket(path, server: true, wait: false))
    // With FIFOs, sixteen bytes follow each poll.
    port.writeByte(0x01, at: 2)
    var sent = 0
    func isReady() -> Bool { port.readByte(at: 5) & 0x20 != 0 }
    func sendUntilBusy(_ limit: Int) {
      let end = sent + limit
      while sent < end, isReady() {
        for _ in 0..<16 {
          port.writeByte(UInt8(truncatingIfNeeded: sent &* 31 ^ sent >> 7), at: 0)
          sent += 1
        }
      }
    }
    sendUntilBusy(1 << 10)
    // No client is connected yet.
    #expect(sent == 1 << 10 && isReady())
    do {
      let client = try FileDescriptor(connectingTo: path)
      try client.write([0x2a])
      #expect(receive(1, at: port) == "*")
      let first = sent
      sendUntilBusy(2 << 20)
      try #require(sent < first + (2 << 20) && !isReady())
      let bytes = readAll(client.rawValue, sent - first)
      #expect(bytes == (first..<sent).map { UInt8(truncatingIfNeeded: $0 &* 31 ^ $0 >> 7) })
      #expect(eventually { isReady() })
      sendUntilBusy(2 << 20)
      #expect(!isReady())
    }
    #expect(eventually { isReady() })
    connection.stop()
  }

  @Test("a client socket connects to a server, and fails without one")
  func aClientSocketConnectsToAServer() throws {
    let listener = try UnixListener(at: path)
    let (connection, port) = try connect(socket(path, server: false))
    let server = try listener.accept()
    send("guest", from: port)
    let seen = text(server, 5)
    #expect(seen == "guest")
    try server.write(Array("host".utf8))
    #expect(receive(4, at: port) == "host")
    connection.stop()
    #expect(throws: SystemError.self) {
      try open(socket(path + ".no", server: false))
    }
  }

  @Test("a server with wait=on starts when a client connects")
  func waitingForAClient() throws {
    let path = self.path
    let client = try Thread(name: "client") {
      for _ in 0..<5_000 {
        if let client = try? FileDescriptor(connectingTo: path) {
          try? client.write([UInt8(ascii: "w")])
          return
        }
        usleep(1_000)
      }
    }
    let (connection, port) = try connect(socket(path, server: true, wait: true))
    #expect(receive(1, at: port) == "w")
    client.join()
    connection.stop()
  }

  /// An interruption ends the wait and leaves no socket behind.
  @Test("the wait for a client can be interrupted")
  func theWaitForAClientCanBeGivenUp() throws {
    let signal = try EventDescriptor()
    signal.signal()
    let error = #expect(throws: SystemError.self) {
      try open(socket(path, server: true, wait: true), interruption: signal.rawValue)
    }
    #expect(error == SystemError("accept", path, code: EINTR))
    #expect(access(path, F_OK) != 0)
  }

  @Test("the socket is removed with the connection")
  func theSocketGoesWithTheConnection() throws {
    do {
      let (connection, _) = try connect(socket(path, server: true, wait: false))
      connection.stop()
    }
    #expect(access(path, F_OK) != 0)
  }

  /// The client does not read, and the guest does not take its input. Stopping returns nevertheless.
  @Test("stopping waits neither for the client nor for the guest")
  func stoppingDoesNotWaitForAClient() throws {
    let (connection, port) = try connect(socket(path, server: true, wait: false))
    let client = try FileDescriptor(connectingTo: path)
    try client.write([UInt8](repeating: 65, count: 10_000))
    #expect(receive(1, at: port) == "A")
    for _ in 0..<100_000 { send("0123456789", from: port) }
    connection.stop()
    _ = client.rawValue
  }

  /// A pipe replaces standard input for a moment.
  @Test("the interpreter removes its commands from standard input")
  func standardInputPassesTheInterpreter() throws {
    let pipe = makePipe()
    let saved = dup(STDIN_FILENO)
    dup2(pipe.reader, STDIN_FILENO)
    let (connection, port) = try connect(StdioChardevOptions())
    dup2(saved, STDIN_FILENO)
    close(saved)
    #expect(write(pipe.writer, "ab!c", 4) == 4)
    #expect(receive(2, at: port) == "ab")
    #expect(events.take() == .quit(.terminal))
    close(pipe.writer)
    connection.stop()
    close(pipe.reader)
  }
}
