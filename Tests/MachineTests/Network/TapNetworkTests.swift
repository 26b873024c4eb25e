import CLinux
import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import Machine

/// Moves frames through a `-netdev tap` of a running machine without a CPU, in a network namespace that only this test
/// has. The host's end is a packet socket (packet(7)).
@Suite(.timeLimit(.minutes(2))) struct TapNetworkTests {
  private static let isPossible: Bool = {
    let possible = SharedFlag()
    let thread = try? Thread(name: "namespace") {
      possible.set(leaveNamespace() && access("/dev/net/tun", R_OK | W_OK) == 0)
    }
    thread?.join()
    return possible.value
  }()

  private final class SharedFlag: Sendable {
    private let notes = Notes<Bool>()
    func set(_ value: Bool) { notes.add(value) }
    var value: Bool { notes.all.last == true }
  }

  /// Calls unshare(2) with CLONE_NEWNET. Glibc's module does not have the function.
  private static func leaveNamespace() -> Bool {
    guard let function = dlsym(nil, "unshare") else { return false }
    return unsafeBitCast(function, to: (@convention(c) (Int32) -> Int32).self)(0x4000_0000) == 0
  }

  /// The host's end of an interface.
  private final class HostEnd {
    private let socket: FileDescriptor
    private let name: String

    /// Sets the interface up and receives all of its frames.
    init(_ name: String) throws {
      self.name = name
      let all = UInt16(0x0003).bigEndian
      // AF_PACKET, ETH_P_ALL.
      socket = FileDescriptor(owning: Glibc.socket(17, Int32(SOCK_RAW.rawValue), Int32(all)))
      try #require(socket.rawValue >= 0)
      try setFlags(1)
      // struct sockaddr_ll: family, protocol, index, and 12 bytes that bind(2) does not read.
      var address = [UInt8](repeating: 0, count: 20)
      address.withUnsafeMutableBytes {
        $0.storeBytes(of: 17, as: UInt16.self)
        $0.storeBytes(of: all, toByteOffset: 2, as: UInt16.self)
        $0.storeBytes(of: Int32(if_nametoindex(name)), toByteOffset: 4, as: Int32.self)
      }
      let bound = address.withUnsafeBytes {
        bind(socket.rawValue, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self), 20)
      }
      try #require(bound == 0)
      _ = fcntl(socket.rawValue, F_SETFL, O_NONBLOCK)
    }

    /// SIOCSIFFLAGS: 1 is IFF_UP.
    func setFlags(_ flags: UInt32) throws {
      var bytes = [CChar](repeating: 0, count: 16)
      for (index, byte) in name.utf8.enumerated() { bytes[index] = CChar(bitPattern: byte) }
      var flags = flags
      try #require(nestling_interface_request(socket.rawValue, 0x8914, &bytes, &flags) == 0)
    }

    func send(_ frame: [UInt8]) throws { try socket.write(frame) }

    /// Waits for the next frame of the test: those of the kernel itself have another type.
    func receive() throws -> [UInt8]? {
      var frame: [UInt8]?
      _ = try eventually {
        frame = try socket.read(count: 65536)
        return frame.map { Array($0.dropFirst(12).prefix(2)) == [0x88, 0xb5] } ?? false
      }
      return frame
    }
  }

  /// The EtherType for local experiments (IEEE 802).
  private func frame(to destination: [UInt8], _ number: Int, payload: Int = 46) -> [UInt8] {
    destination + [0x02, 0, 0, 0, 0, 1] + [0x88, 0xb5] + (0..<payload).map { UInt8(truncatingIfNeeded: $0 &+ number) }
  }

  /// Runs a machine with a tap in a new namespace.
  private func run(vhost: Bool = false, _ body: @escaping @Sendable (RunningMachine) throws -> Void) throws {
    let failures = Notes<any Error>()
    let thread = try Thread(name: "namespace") {
      do {
        try #require(Self.leaveNamespace())
        var configuration = MachineConfiguration()
        configuration.accelerator = .qtest
        configuration.memory.size = 64 << 20
        configuration.netdevs = [
          try TapNetdevOptions([
            PropertyAssignment(name: "id", value: "t0"), PropertyAssignment(name: "ifname", value: "nest0"),
            PropertyAssignment(name: "vhost", value: vhost ? "on" : "off"),
          ])
        ]
        configuration.devices = [
          try VirtioNetOptions([
            PropertyAssignment(name: "id", value: "d0"), PropertyAssignment(name: "netdev", value: "t0"),
            PropertyAssignment(name: "addr", value: "03.0"),
          ])
        ]
        let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
        nonisolated(unsafe) let running = machine
        let thread = try Thread(name: "machine") { _ = try? running.run() }
        let outcome = Result { try body(machine) }
        machine.control.requestQuit(.monitorQuit)
        thread.join()
        try outcome.get()
      } catch {
        failures.add(error)
      }
    }
    thread.join()
    if let error = failures.all.first { throw error }
  }

  /// Without vhost-net, and with it where the process may use it.
  private static let ways = access("/dev/vhost-net", R_OK | W_OK) == 0 ? [false, true] : [false]

  @Test(.enabled(if: isPossible), arguments: ways)
  func `frames pass both ways between the driver and the host's network`(vhost: Bool) throws {
    try run(vhost: vhost) { machine in
      let host = try HostEnd("nest0")
      let guest = NetworkGuest(machine)
      #expect(guest.isLinkUp)
      #expect(machine.inspection.networkCards.first?.netdev?.status == .interface("nest0"))
      for number in 0..<10 {
        let sent = self.frame(to: [2, 0, 0, 0, 0, 9], number, payload: 46 + 100 * number)
        guest.send(sent)
        #expect(try host.receive() == sent)
      }
      let frames = (0..<6).map { self.frame(to: guest.address, $0, payload: 46 + 200 * $0) }
      for frame in frames { try host.send(frame) }
      guest.supply()
      var received: [[UInt8]] = []
      #expect(
        eventually {
          received += guest.take().filter { $0.dropFirst(12).prefix(2) == [0x88, 0xb5] }
          return received.count >= 6
        })
      #expect(received == frames)
    }
  }

  @Test(.enabled(if: isPossible)) func `the interface goes with its netdev, and its device loses the link`() throws {
    try run { machine in
      let guest = NetworkGuest(machine)
      #expect(if_nametoindex("nest0") > 0 && guest.isLinkUp)
      try machine.control.perform(.removeNetdev("t0"))
      #expect(!guest.isLinkUp && eventually { if_nametoindex("nest0") == 0 })
      guest.send(self.frame(to: [2, 0, 0, 0, 0, 9], 1))
      #expect(eventually { guest.unsent == 0 })
    }
  }
}
