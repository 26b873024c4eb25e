import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import Devices
@testable import Machine

/// passt needs a default route.
private let isPasstUsable: Bool = {
  guard access("/usr/bin/passt", X_OK) == 0,
    let text = try? FileDescriptor(opening: "/proc/net/route", O_RDONLY).read(count: 65536)
  else { return false }
  return String(decoding: text, as: UTF8.self).split(separator: "\n").contains {
    $0.split(separator: "\t").dropFirst().first == "00000000"
  }
}()

/// Plays the guest of a real passt, which a machine without a CPU starts for `-netdev passt` and `-netdev user`.
@Suite(.timeLimit(.minutes(2)), .enabled(if: isPasstUsable)) struct PasstNetworkTests {
  private func passt(_ more: [(String, String)]) throws -> PasstNetdevOptions {
    try PasstNetdevOptions(([("id", "n0")] + more).map { PropertyAssignment(name: $0.0, value: $0.1) })
  }

  private func user(_ more: [(String, String)]) throws -> UserNetdevOptions {
    try UserNetdevOptions(([("id", "n0")] + more).map { PropertyAssignment(name: $0.0, value: $0.1) })
  }

  /// Makes a machine, which starts its netdevs.
  private func start(_ netdevs: [any NetdevOptions]) throws(StartError) {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    configuration.netdevs = netdevs
    _ = try RunningMachine(configuration, interpreter: PassingInterpreter())
  }

  private func run(
    _ netdevs: [any NetdevOptions], _ body: (RunningMachine, Notes<MachineNotice>) throws -> Void
  ) throws {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    configuration.netdevs = netdevs
    configuration.devices = try netdevs.map {
      try VirtioNetOptions([
        PropertyAssignment(name: "netdev", value: $0.id?.text), PropertyAssignment(name: "addr", value: "03.0"),
      ])
    }
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    machine.board.buses.set(LiveBus(name: "pcie.0", type: .pci, isHotpluggable: true))
    let notices = Notes<MachineNotice>()
    machine.control.addListener { notices.add($0) }
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    #expect(eventually { machine.control.status == .running })
    let outcome = Result { try body(machine, notices) }
    machine.control.requestQuit(.monitorQuit)
    thread.join()
    try outcome.get()
  }

  private func status(_ machine: RunningMachine) -> NetdevStatus? {
    machine.inspection.networkCards.first?.netdev?.status ?? machine.inspection.freeNetdevs.first?.status
  }

  private func process(_ machine: RunningMachine) throws -> Int32 {
    guard case .process(let number)? = status(machine) else { throw SystemError("passt", code: ESRCH) }
    return number
  }

  private func isGone(_ process: Int32) -> Bool { kill(process, 0) < 0 && errno == ESRCH }

  // MARK: Frames

  private func checksum(_ bytes: [UInt8]) -> [UInt8] {
    var sum = stride(from: 0, to: bytes.count, by: 2).reduce(0) { $0 + Int(bytes[$1]) << 8 + Int(bytes[$1 + 1]) }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return [UInt8(~sum >> 8 & 0xff), UInt8(~sum & 0xff)]
  }

  /// RFC 826: who has this address?
  private func arpRequest(_ guest: NetworkGuest, for address: [UInt8]) -> [UInt8] {
    [UInt8](repeating: 0xff, count: 6) + guest.address + [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] + guest.address
      + [UInt8](repeating: 0, count: 10) + address
  }

  /// RFC 2131, section 3.1: the message with which a client begins.
  private func discover(_ guest: NetworkGuest) -> [UInt8] {
    let zeros = { [UInt8](repeating: 0, count: $0) }
    let message =
      [1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78] + zeros(20) + guest.address + zeros(10 + 192)
      + [0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]
    let datagram = [0, 68, 0, 67, UInt8((message.count + 8) >> 8), UInt8((message.count + 8) & 0xff), 0, 0] + message
    let total = datagram.count + 20
    var header: [UInt8] = [0x45, 0, UInt8(total >> 8), UInt8(total & 0xff), 0, 0, 0, 0, 64, 17, 0, 0]
    header += zeros(4) + [255, 255, 255, 255]
    header.replaceSubrange(10..<12, with: checksum(header))
    return [UInt8](repeating: 0xff, count: 6) + guest.address + [8, 0] + header + datagram
  }

  /// Waits for a frame that fits, and drops the others, such as router advertisements.
  private func receive(_ guest: NetworkGuest, _ fits: ([UInt8]) -> Bool) -> [UInt8]? {
    var found: [UInt8]?
    _ = eventually {
      for frame in guest.take() {
        if found == nil, fits(frame) { found = frame }
        guest.supply(1)
      }
      return found != nil
    }
    return found
  }

  private func isUDP(_ frame: [UInt8], from port: UInt8) -> Bool {
    frame.count > 42 && frame[12..<14] == [8, 0] && frame[23] == 17 && frame[34..<36] == [0, port]
  }

  /// Exchanges DISCOVER and OFFER.
  /// - Returns: the message of the OFFER, and its options.
  private func offer(_ guest: NetworkGuest) throws -> (message: [UInt8], options: [UInt8: [UInt8]]) {
    guest.send(discover(guest))
    let frame = try #require(receive(guest) { isUDP($0, from: 67) })
    let message = Array(frame[42...])
    var options: [UInt8: [UInt8]] = [:]
    var at = 240
    while at + 1 < message.count, message[at] != 255 {
      if message[at] == 0 {
        at += 1
        continue
      }
      let end = min(message.count, at + 2 + Int(message[at + 1]))
      options[message[at]] = Array(message[at + 2..<end])
      at = end
    }
    return (message, options)
  }

  // MARK: Tests

  @Test func `passt answers the guest's ARP and DHCP with the addresses of the options`() throws {
    let options = [("address", "192.0.2.77"), ("netmask", "24"), ("gateway", "192.0.2.1"), ("ipv6", "off")]
    try run([try passt(options)]) { machine, notices in
      let guest = NetworkGuest(machine)
      // The machine's start has waited for passt.
      #expect(guest.isLinkUp)
      let process = try process(machine)
      #expect(!isGone(process))
      guest.supply()
      guest.send(arpRequest(guest, for: [192, 0, 2, 1]))
      let reply = try #require(receive(guest) { $0[12..<14] == [8, 6] })
      #expect(Array(reply[..<6]) == guest.address && reply[20..<22] == [0, 2] && reply[28..<32] == [192, 0, 2, 1])
      let (message, fields) = try offer(guest)
      #expect(message[0] == 2 && fields[53] == [2])
      #expect(message[16..<20] == [192, 0, 2, 77])
      #expect(fields[1] == [255, 255, 255, 0] && fields[3] == [192, 0, 2, 1])
      #expect(notices.all == [.streamConnected(try Identifier(text: "n0"), .unix(path: ""))])
    }
  }

  @Test func `user gives QEMU's addresses, and a connection to a forwarded port reaches the guest`() throws {
    // The system chooses a free port.
    let port = try freePort()
    try run([try user([("hostfwd", "tcp:127.0.0.1:\(port)-:22")])]) { machine, _ in
      let guest = NetworkGuest(machine)
      guest.supply()
      let (message, fields) = try offer(guest)
      #expect(message[16..<20] == [10, 0, 2, 15])
      #expect(fields[1] == [255, 255, 255, 0] && fields[3] == [10, 0, 2, 2])
      let client = try FileDescriptor(beginningToConnectTo: "127.0.0.1", port: port)
      let frame = try #require(
        receive(guest) { $0.count >= 54 && $0[12..<14] == [8, 0] && $0[23] == 6 && $0[36..<38] == [0, 22] })
      #expect(Array(frame[..<6]) == guest.address && frame[30..<34] == [10, 0, 2, 15])
      // RFC 9293: SYN without ACK.
      #expect(frame[47] & 0x12 == 0x02)
      withExtendedLifetime(client) {}
    }
  }

  private func freePort() throws -> UInt16 {
    let probe = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(probe) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    var size = socklen_t(MemoryLayout<sockaddr_in>.size)
    let answer = withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(probe, $0, size) + getsockname(probe, $0, &size) }
    }
    #expect(answer == 0)
    return UInt16(bigEndian: address.sin_port)
  }

  @Test func `passt ends with the machine and with its netdev`() throws {
    var last: Int32 = 0
    try run([try passt([])]) { machine, notices in
      let guest = NetworkGuest(machine)
      let first = try process(machine)
      try machine.control.perform(.removeNetdev("n0"))
      #expect(eventually { isGone(first) })
      #expect(!guest.isLinkUp && status(machine) == .closed)
      var more = try passt([])
      more.id = try Identifier(text: "n1")
      try machine.control.perform(.addNetdev(more))
      #expect(eventually { if case .process? = machine.inspection.freeNetdevs.first?.status { true } else { false } })
      if case .process(let number)? = machine.inspection.freeNetdevs.first?.status { last = number }
      #expect(!isGone(last))
      // An end that was asked for is not reported.
      #expect(!notices.all.contains { if case .netdevProgramEnded = $0 { true } else { false } })
    }
    #expect(last > 0 && eventually { isGone(last) })
  }

  @Test func `when passt dies, the link goes down, a notice reports it, and the machine lives`() throws {
    try run([try passt([])]) { machine, notices in
      let guest = NetworkGuest(machine)
      #expect(guest.isLinkUp)
      kill(try process(machine), SIGKILL)
      let failure = ProgramFailure(program: "passt", end: .killed(signal: SIGKILL), reason: nil)
      let id = try Identifier(text: "n0")
      #expect(eventually { notices.all.contains(.netdevProgramEnded(id, failure)) })
      #expect(eventually { !guest.isLinkUp })
      #expect(notices.all.contains(.streamDisconnected(id)))
      #expect(status(machine) == .ended(failure))
      guest.send(discover(guest))
      #expect(eventually { guest.unsent == 0 })
      try machine.control.perform(.removeNetdev("n0"))
      #expect(machine.control.status == .running)
    }
  }

  @Test func `an option that passt refuses is an error of the start, and a notice after netdev_add`() throws {
    let failure = ProgramFailure(program: "passt", end: .exited(status: 1), reason: "Invalid address: nowhere")
    let wrong = try passt([("address", "nowhere")])
    let expected = StartError.netdev(typeName: "passt", id: wrong.id, .ended(failure))
    #expect(throws: expected) { try start([wrong]) }
    try run([]) { machine, notices in
      try machine.control.perform(.addNetdev(wrong))
      let id = try #require(wrong.id)
      #expect(eventually { notices.all.contains(.netdevProgramEnded(id, failure)) })
      #expect(status(machine) == .ended(failure))
    }
    // getopt's line is the reason, not the usage text that follows.
    let unknown = try passt([("param", "--no-such-option")])
    do throws(StartError) {
      try start([unknown])
      Issue.record("passt has started")
    } catch {
      guard case .netdev(_, _, .ended(let failure)) = error else { throw error }
      #expect(failure.reason == "passt: unrecognized option '--no-such-option'")
    }
  }
}

@Suite struct MissingPasstTests {
  @Test func `a program that is not in PATH is an error of the start`() throws {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    var netdev = PasstNetdevOptions()
    netdev.id = try Identifier(text: "n0")
    netdev.path = "nestling-no-passt"
    configuration.netdevs = [netdev]
    #expect(throws: StartError.netdev(typeName: "passt", id: netdev.id, .notInstalled("nestling-no-passt"))) {
      _ = try RunningMachine(configuration, interpreter: PassingInterpreter())
    }
  }
}
