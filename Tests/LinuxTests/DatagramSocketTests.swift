import Glibc
import Testing

@testable import Linux

/// Exchanges packets between two sockets of this process.
@Suite final class DatagramSocketTests {
  private let memory: GuestMemory
  private let left = "/tmp/nestling-dgram-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  private var right: String { left + "-peer" }

  init() throws { memory = try GuestMemory(size: 1 << 20, lowLimit: 1 << 20) }

  private func send(_ packet: [UInt8], on socket: DatagramSocket) throws -> Bool {
    let isStored = memory.write(RawSpan(_elements: packet.span), to: 0x1003)
    #expect(isStored)
    let half = packet.count / 2
    let parts = [
      ScatteredFile.Segment(address: 0x1003, count: half),
      ScatteredFile.Segment(address: 0x1003 + UInt64(half), count: packet.count - half),
    ]
    return try socket.send(parts.count, of: memory) { parts[$0] }
  }

  private func receive(on socket: DatagramSocket, room: Int = 2000) throws -> [UInt8]? {
    var buffer = [UInt8](repeating: 0xee, count: 4 + room)
    var span = buffer.mutableSpan
    var bytes = MutableRawSpan(_elements: &span)
    guard let count = try socket.receive(into: &bytes, at: 4) else { return nil }
    #expect(buffer[..<4] == [0xee, 0xee, 0xee, 0xee])
    return Array(buffer[4..<4 + count])
  }

  private func pair() throws -> (DatagramSocket, DatagramSocket) {
    (
      try DatagramSocket(at: .unix(path: left), to: .unix(path: right)),
      try DatagramSocket(at: .unix(path: right), to: .unix(path: left))
    )
  }

  @Test func `a packet from scattered guest memory arrives as one datagram, both ways`() throws {
    let (one, other) = try pair()
    #expect(try receive(on: one) == nil)
    for (from, to) in [(one, other), (other, one)] {
      for count in [2, 60, 1514, 60_000] {
        let packet = (0..<count).map { UInt8(truncatingIfNeeded: $0 * 7) }
        #expect(try send(packet, on: from))
        #expect(try receive(on: to, room: 65_536) == packet)
      }
    }
  }

  @Test func `UDP sockets exchange packets`() throws {
    // The kernel gives out these ports only if a program asks for them.
    let base = UInt16(20_000 + Int(getpid()) % 5_000)
    let (left, right) = (
      DatagramSocket.Address.inet(host: "127.0.0.1", port: base),
      DatagramSocket.Address.inet(host: "localhost", port: base + 1)
    )
    let one = try DatagramSocket(at: left, to: right)
    let other = try DatagramSocket(at: right, to: left)
    #expect(try send([1, 2, 3, 4], on: one))
    #expect(try receive(on: other) == [1, 2, 3, 4])
    #expect(throws: SystemError.self) {
      _ = try DatagramSocket(at: left, to: .unix(path: self.left))
    }
  }

  @Test func `a datagram that is empty or too long is skipped`() throws {
    let (one, other) = try pair()
    #expect(try send([UInt8](repeating: 1, count: 101), on: one))
    #expect(try one.send(0, of: memory) { _ in fatalError("there is no segment") })
    #expect(try send([5, 6], on: one))
    #expect(try receive(on: other, room: 100) == [5, 6])
    #expect(try receive(on: other) == nil)
  }

  @Test func `a full queue is reported, and a peer may come later or be replaced`() throws {
    let one = try DatagramSocket(at: .unix(path: left), to: .unix(path: right))
    #expect(throws: SystemError("sendmsg", right, code: ENOENT)) { _ = try send([1, 2], on: one) }
    do {
      let other = try DatagramSocket(at: .unix(path: right), to: .unix(path: left))
      var count = 0
      while count < 100_000, try send([1, 2], on: one) { count += 1 }
      #expect(count > 0 && count < 100_000)
      for _ in 0..<count { #expect(try receive(on: other) == [1, 2]) }
      #expect(try send([3, 4], on: one))
      #expect(throws: SystemError("bind", right, code: EADDRINUSE)) {
        _ = try DatagramSocket(at: .unix(path: right), to: .unix(path: left))
      }
    }
    // The socket's file went with the socket.
    #expect(throws: SystemError("sendmsg", right, code: ENOENT)) { _ = try send([1, 2], on: one) }
    let later = try DatagramSocket(at: .unix(path: right), to: .unix(path: left))
    #expect(try send([7, 8], on: one))
    #expect(try receive(on: later) == [7, 8])
  }

  @Test func `guest memory that is not RAM is refused`() throws {
    let (one, _) = try pair()
    #expect(throws: SystemError("sendmsg", "guest memory", code: EFAULT)) {
      _ = try one.send(1, of: memory) { _ in ScatteredFile.Segment(address: 0xffff_f000, count: 64) }
    }
  }
}
