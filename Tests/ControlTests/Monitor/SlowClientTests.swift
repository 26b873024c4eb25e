import Glibc
import JSON
import Linux
import TestSupport
import Testing

@testable import Control
@testable import Machine

/// A QMP client on a socket that reads and writes only on demand.
private final class SocketClient {
  private let file: FileDescriptor
  private var stream = JSONStream(sizeLimit: 16 << 20)
  private var messages: [JSONValue] = []

  init(_ file: consuming FileDescriptor) {
    _ = fcntl(file.rawValue, F_SETFL, O_NONBLOCK)
    self.file = file
  }

  private func isReady(_ events: Int32, _ milliseconds: Int32) -> Bool {
    var entry = pollfd(fd: file.rawValue, events: Int16(events), revents: 0)
    return poll(&entry, 1, milliseconds) > 0
  }

  /// Writes bytes until the socket accepts none for a quarter of a second.
  /// - Returns: The rest.
  func offer(_ bytes: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
    var rest = bytes
    while !rest.isEmpty, isReady(POLLOUT, 250) {
      let count = rest.withUnsafeBytes {
        Glibc.send(file.rawValue, $0.baseAddress, min(65536, $0.count), Int32(MSG_NOSIGNAL))
      }
      if count <= 0 { break }
      rest = rest.dropFirst(count)
    }
    return rest
  }

  func send(_ text: String) { #expect(offer(Array(text.utf8)[...]).isEmpty) }

  /// Returns the next message, or nil at the end or after 20 seconds without one.
  func message() -> JSONObject? {
    var buffer = [UInt8](repeating: 0, count: 65536)
    while messages.isEmpty {
      guard isReady(POLLIN, 20_000) else { return nil }
      let count = read(file.rawValue, &buffer, buffer.count)
      if count <= 0 { return nil }
      stream.receive(buffer[..<count]) {
        if case .value(let value) = $0 { messages.append(value) }
        return true
      }
    }
    guard case .object(let object) = messages.removeFirst() else { return nil }
    return object
  }
}

@Suite(.serialized, .timeLimit(.minutes(5))) struct SlowClientTests {
  private let path = "/tmp/nestling-slow-\(getpid())"
  private let machine = RecordingMachine()
  private let device: Chardev
  private let monitor: Monitor

  init() throws {
    signal(SIGPIPE, SIG_IGN)
    unlink(path)
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

  private func connect() throws -> SocketClient {
    let client = SocketClient(try FileDescriptor(connectingTo: path))
    #expect(client.message()?["QMP"] != nil)
    client.send(#"{"execute": "qmp_capabilities"}"#)
    #expect(client.message()?["return"] == [:])
    return client
  }

  @Test("while a client does not read, its requests wait; once it reads, it gets every answer")
  func requestsWait() throws {
    let client = try connect()
    let count = 400
    let requests = (0..<count).flatMap { Array(#"{"execute": "query-qmp-schema", "id": \#($0)}"#.utf8) }
    // With the padding, the requests exceed the buffers of the socket and of Nestling.
    let padding = [UInt8](repeating: 0x20, count: 1 << 20)
    var rest = client.offer((requests + padding + padding)[...])
    #expect(!rest.isEmpty)
    for number in 0..<count {
      let answer = try #require(client.message(), "answer \(number)")
      #expect(answer["id"] == .integer(Int64(number)) && answer["return"] != nil)
      if number % 100 == 0 { rest = client.offer(rest) }
    }
    device.stop()
  }

  @Test("an answer may be longer than the buffer for a slow client")
  func longAnswer() throws {
    let client = try connect()
    // Each ü takes six bytes in the answer.
    let id = String(repeating: "ü", count: 400_000)
    for _ in 0..<3 {
      client.send(#"{"execute": "query-name", "id": "\#(id)"}"#)
      let isWhole = client.message()?["id"] == .string(id)
      #expect(isWhole)
    }
    device.stop()
  }

  @Test("beyond a bound, events for a client that does not read are dropped, and the client gets their count")
  func eventsAreBounded() throws {
    let client = try connect()
    let count = 20_000
    for number in 0..<count { monitor.notify(.powerDown, at: UInt64(number) * 1000) }
    var seen: Int64 = 0
    var dropped: Int64 = 0
    while dropped == 0 {
      let event = try #require(client.message())
      if event["event"] == "X_EVENTS_DROPPED" {
        guard case .object(let data)? = event["data"], case .integer(let number)? = data["count"] else { break }
        dropped = number
      } else {
        #expect(event["event"] == "POWERDOWN")
        #expect(event["timestamp"] == ["seconds": 0, "microseconds": .integer(seen)])
        seen += 1
      }
    }
    #expect(seen > 5000 && dropped > 0 && seen + dropped == Int64(count), "\(seen) and \(dropped)")
    monitor.notify(.powerDown, at: 0)
    #expect(client.message()?["event"] == "POWERDOWN")
    client.send(#"{"execute": "query-name"}"#)
    #expect(client.message()?["return"] == [:])
    device.stop()
  }

  @Test("after a client left without reading, the next client gets the answers to its own requests")
  func nextClient() throws {
    do {
      let client = try connect()
      let requests = (0..<300).flatMap { Array(#"{"execute": "query-qmp-schema", "id": \#($0)}"#.utf8) }
      _ = client.offer(requests[...])
    }
    let next = try connect()
    next.send(#"{"execute": "query-name", "id": "mine"}"#)
    #expect(next.message() == ["return": [:], "id": "mine"])
    device.stop()
  }

  @Test("a client's last request is carried out although the client leaves without reading")
  func lastWish() throws {
    do {
      let client = try connect()
      for _ in 0..<200 { client.send(#"{"execute": "query-qmp-schema"}"#) }
      client.send(#"{"execute": "system_reset"}"#)
    }
    #expect(eventually { machine.requests == ["reset"] })
    device.stop()
  }
}
