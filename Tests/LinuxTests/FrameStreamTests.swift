import Glibc
import Testing

@testable import Linux

/// Sends and receives frames over a pair of sockets.
@Suite final class FrameStreamTests {
  private static let longest = 2000
  private let memory: GuestMemory
  private let stream: FrameStream
  private let peer: FileDescriptor

  init() throws {
    var pair: [Int32] = [-1, -1]
    try #require(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &pair) == 0)
    memory = try GuestMemory(size: 1 << 20, lowLimit: 1 << 20)
    stream = FrameStream(FileDescriptor(owning: pair[0]), longestFrame: Self.longest)
    peer = FileDescriptor(owning: pair[1])
    _ = fcntl(pair[1], F_SETFL, O_NONBLOCK)
  }

  private static func frame(_ count: Int, seed: Int = 0) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ seed) }
  }

  private static func framed(_ frame: [UInt8]) -> [UInt8] {
    let count = frame.count
    return [UInt8(count >> 24), UInt8(count >> 16 & 0xff), UInt8(count >> 8 & 0xff), UInt8(count & 0xff)] + frame
  }

  private func store(_ bytes: [UInt8], at address: UInt64) -> Bool {
    memory.write(RawSpan(_elements: bytes.span), to: address)
  }

  /// Sends a frame whose pieces lie at scattered addresses.
  private func send(_ frame: [UInt8], pieces: [Int]) throws -> Bool {
    var segments: [ScatteredFile.Segment] = []
    var at = 0
    for count in pieces + [frame.count - pieces.reduce(0, +)] {
      let address = UInt64(0x1000 * (segments.count + 1) + 3)
      #expect(store(Array(frame[at..<at + count]), at: address))
      segments.append(.init(address: address, count: count))
      at += count
    }
    return try stream.send(segments.count, of: memory) { segments[$0] }
  }

  /// Takes all frames that have arrived.
  private func receive() throws -> [[UInt8]] {
    var frames: [[UInt8]] = []
    var buffer = [UInt8](repeating: 0xee, count: 8 + Self.longest)
    while true {
      var span = buffer.mutableSpan
      var bytes = MutableRawSpan(_elements: &span)
      guard let count = try stream.receive(into: &bytes, at: 8) else { return frames }
      #expect(buffer[..<8] == [UInt8](repeating: 0xee, count: 8)[...])
      frames.append(Array(buffer[8..<8 + count]))
    }
  }

  @Test func `a frame is sent after its length, whatever its pieces`() throws {
    for (size, pieces) in [(1, []), (60, [14]), (1500, [1, 13, 700]), (2000, [500, 500, 500])] as [(Int, [Int])] {
      let frame = Self.frame(size)
      #expect(try send(frame, pieces: pieces))
      #expect(try peer.read(count: 4096) == Self.framed(frame))
    }
  }

  @Test func `frames arrive whole, in whatever parts their bytes arrive`() throws {
    let frames = [60, 0, 1, 2000, 1514, 64].enumerated().map { Self.frame($1, seed: $0) }
    let bytes = frames.flatMap(Self.framed)
    for part in [1, 3, 61, 1000, bytes.count] {
      var received: [[UInt8]] = []
      for start in stride(from: 0, to: bytes.count, by: part) {
        try peer.write(Array(bytes[start..<min(start + part, bytes.count)]))
        received += try receive()
      }
      #expect(received == frames, "parts of \(part) bytes")
    }
  }

  @Test func `a frame that the socket has no room for is completed later, and no other comes between`() throws {
    var sent: [[UInt8]] = []
    // The peer does not read, so the socket fills.
    while sent.count < 10_000 {
      let frame = Self.frame(1999, seed: sent.count)
      guard try send(frame, pieces: [100]) else { break }
      sent.append(frame)
    }
    #expect(sent.count > 1 && sent.count < 10_000)
    var bytes: [UInt8] = []
    while let some = try peer.read(count: 4096) {
      bytes += some
      if stream.hasRest { _ = try stream.flush() }
    }
    #expect(!stream.hasRest)
    #expect(bytes == sent.flatMap(Self.framed))
    #expect(try send([1, 2, 3], pieces: []))
    #expect(try peer.read(count: 4096) == Self.framed([1, 2, 3]))
  }

  @Test func `the rest of a frame waits in a copy, which the guest cannot change`() throws {
    var size: Int32 = 1
    setsockopt(stream.rawValue, SOL_SOCKET, SO_SNDBUF, &size, socklen_t(MemoryLayout<Int32>.size))
    var sent: [[UInt8]] = []
    while sent.count < 10_000, !stream.hasRest {
      let frame = Self.frame(60_000, seed: sent.count)
      guard try send(frame, pieces: [1000, 2000]) else { break }
      sent.append(frame)
    }
    try #require(stream.hasRest)
    #expect(store([UInt8](repeating: 0, count: 0x8_0000), at: 0x1000))
    // Another frame must wait.
    #expect(try !send([9], pieces: []))
    var bytes: [UInt8] = []
    while let some = try peer.read(count: 65536), !some.isEmpty {
      bytes += some
      _ = try stream.flush()
    }
    // The guest overwrote the memory after the last frame was taken.
    #expect(bytes == sent.flatMap(Self.framed))
  }

  @Test func `a segment outside RAM and a frame that is too long are refused`() throws {
    #expect(throws: SystemError("sendmsg", "guest memory", code: EFAULT)) {
      _ = try stream.send(2, of: memory) { .init(address: $0 == 0 ? 0 : 1 << 20, count: 16) }
    }
    #expect(throws: SystemError("sendmsg", code: EMSGSIZE)) {
      _ = try stream.send(1024, of: memory) { _ in .init(address: 0, count: 1) }
    }
    #expect(try peer.read(count: 4096) == nil)
    try peer.write(Self.framed(Self.frame(2000)) + [0, 0, 7, 0xd1])
    #expect(throws: SystemError("recv", "a frame of 2001 bytes", code: EMSGSIZE)) { _ = try receive() }
  }

  @Test func `the end of the stream is an error in both directions`() throws {
    try peer.write(Self.framed([1, 2]))
    shutdown(peer.rawValue, Int32(SHUT_RDWR))
    var buffer = [UInt8](repeating: 0, count: 2000)
    var span = buffer.mutableSpan
    var bytes = MutableRawSpan(_elements: &span)
    #expect(try stream.receive(into: &bytes, at: 0) == 2)
    let ended = Result { () throws(SystemError) in try stream.receive(into: &bytes, at: 0) }
    #expect(ended == .failure(SystemError("recv", code: ECONNRESET)))
    #expect(throws: SystemError("sendmsg", code: EPIPE)) { _ = try send([1], pieces: []) }
  }

  @Test func `a TCP connection begins without waiting, and its failure is reported`() throws {
    // A port on which no process listens.
    let port: UInt16 = try {
      for port in (40_000..<60_000 as Range<UInt16>).shuffled() {
        if (try? TCPListener(at: "127.0.0.1", port: port)) != nil { return port }
      }
      throw SystemError("bind", code: EADDRINUSE)
    }()
    let error = #expect(throws: SystemError.self) {
      let file = try FileDescriptor(beginningToConnectTo: "127.0.0.1", port: port)
      _ = Poll.writable(file.rawValue, milliseconds: 1000)
      try file.checkConnection(to: "there")
    }
    #expect(error?.call == "connect" && error?.code == ECONNREFUSED)
    let listener = try TCPListener(at: "127.0.0.1", port: port)
    let file = try FileDescriptor(beginningToConnectTo: "127.0.0.1", port: port)
    #expect(Poll.writable(file.rawValue, milliseconds: 1000))
    try file.checkConnection(to: "there")
    _ = try listener.accept()
  }
}
