import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import Machine

/// Moves frames through a `-netdev dgram` of running machines without a CPU.
@Suite(.timeLimit(.minutes(2))) struct DatagramNetworkTests {
  private let left = "/tmp/nestling-frames-\(getpid())-\(UInt32.random(in: 0 ... .max))"
  private var right: String { left + "-peer" }

  private func netdev(from local: String, to remote: String) throws -> DgramNetdevOptions {
    try DgramNetdevOptions(
      [
        ("id", "n0"), ("local.type", "unix"), ("local.path", local), ("remote.type", "unix"), ("remote.path", remote),
      ].map { PropertyAssignment(name: $0.0, value: $0.1) })
  }

  @Test func `two machines exchange frames over their sockets`() throws {
    try runNetworkMachine([try netdev(from: left, to: right)], [try networkCard("d0", on: "n0")]) { one, _ in
      let first = NetworkGuest(one)
      #expect(first.isLinkUp)
      // Without a peer, a packet is lost.
      first.send(ethernetFrame(to: [2, 0, 0, 0, 0, 9], 0))
      #expect(eventually { first.unsent == 0 })
      try runNetworkMachine([try netdev(from: right, to: left)], [try networkCard("d0", on: "n0")]) { two, _ in
        let second = NetworkGuest(two)
        first.supply()
        second.supply()
        for number in 0..<8 {
          first.send(ethernetFrame(to: second.address, number, payload: 46 + 180 * number))
          second.send(ethernetFrame(to: first.address, 100 + number))
          #expect(second.wait(for: 1) == [ethernetFrame(to: second.address, number, payload: 46 + 180 * number)])
          #expect(first.wait(for: 1) == [ethernetFrame(to: first.address, 100 + number)])
        }
        #expect(
          two.inspection.networkCards.first?.netdev?.status
            == .datagrams(local: .unix(path: right), remote: .unix(path: left)))
      }
    }
    // The machines removed their sockets.
    #expect(access(left, F_OK) < 0 && access(right, F_OK) < 0)
  }

  @Test func `frames wait for a peer whose queue is full, and are lost if it stays full`() throws {
    try runNetworkMachine([try netdev(from: left, to: right)], [try networkCard("d0", on: "n0")]) { machine, _ in
      let guest = NetworkGuest(machine)
      let peer = try DatagramSocket(at: .unix(path: right), to: .unix(path: left))
      // Once the queue is full, the device keeps the packets, and later drops them.
      var sent = 0
      while sent < 100_000, guest.unsent == 0 {
        guest.send(ethernetFrame(to: [2, 0, 0, 0, 0, 9], sent))
        sent += 1
        for _ in 0..<20 where guest.unsent > 0 { usleep(1000) }
      }
      #expect(sent < 100_000)
      #expect(eventually { guest.unsent == 0 })
      // The peer finds the packets that were sent before, in their order.
      var buffer = [UInt8](repeating: 0, count: 2000)
      var span = buffer.mutableSpan
      var bytes = MutableRawSpan(_elements: &span)
      #expect(try peer.receive(into: &bytes, at: 0) == 60)
      #expect(Array(buffer[..<60]) == ethernetFrame(to: [2, 0, 0, 0, 0, 9], 0))
      // With room again, the device sends.
      guest.send(ethernetFrame(to: [2, 0, 0, 0, 0, 9], 7))
      #expect(eventually { guest.unsent == 0 })
    }
  }
}
