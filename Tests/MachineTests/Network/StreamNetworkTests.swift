import Devices
import Glibc
import Hardware
import Linux
import TestSupport
import Testing

@testable import Machine

/// Moves frames through a `-netdev stream` of a running machine without a CPU. The test is the driver, and the peer.
@Suite(.timeLimit(.minutes(2))) struct StreamNetworkTests {
  private let path = "/tmp/nestling-stream-\(getpid())-\(UInt32.random(in: 0 ... .max))"

  private func netdev(_ id: String, _ more: [(String, String)] = [], path: String? = nil) throws -> StreamNetdevOptions
  {
    let all = [("id", id), ("addr.type", "unix"), ("addr.path", path ?? self.path)] + more
    return try StreamNetdevOptions(all.map { PropertyAssignment(name: $0.0, value: $0.1) })
  }

  private func card(_ id: String, on netdev: String, device: UInt8 = 3) throws -> Machine.VirtioNetOptions {
    try networkCard(id, on: netdev, device: device)
  }

  private func run(
    _ netdevs: [any NetdevOptions], _ devices: [any DeviceOptions],
    _ body: (RunningMachine, Notes<MachineNotice>) throws -> Void
  ) throws {
    defer { unlink(path) }
    try runNetworkMachine(netdevs, devices, body)
  }

  private func status(_ machine: RunningMachine) -> NetdevStatus? {
    machine.inspection.networkCards.first?.netdev?.status
  }

  @Test func `frames pass both ways between the driver and the peer of a server`() throws {
    try run([try netdev("n0", [("server", "on")])], [try card("d0", on: "n0")]) { machine, notices in
      let guest = NetworkGuest(machine)
      #expect(guest.address == [0x52, 0x54, 0, 0x12, 0x34, 0x56])
      #expect(!guest.isLinkUp && status(machine) == .listening)
      // Without a peer, a packet is dropped.
      guest.send(ethernetFrame(to: [2, 0, 0, 0, 0, 9], 0))
      #expect(eventually { guest.unsent == 0 })
      let peer = StreamPeer(try FileDescriptor(connectingTo: path))
      #expect(eventually { guest.isLinkUp })
      #expect(status(machine) == .connected(.unix(path: path)))
      #expect(notices.all.contains(.streamConnected(try Identifier(text: "n0"), .unix(path: path))))
      for round in 0..<20 {
        let frame = ethernetFrame(to: [2, 0, 0, 0, 0, 9], round, payload: 46 + 70 * round)
        guest.send(frame)
        #expect(try peer.receive() == frame)
      }
      // Frames that arrive before there are buffers wait in the socket.
      let frames = (0..<8).map { ethernetFrame(to: guest.address, $0, payload: 46 + 100 * $0) }
      for frame in frames { try peer.send(frame) }
      guest.supply()
      #expect(guest.wait(for: 8) == frames)
      guest.supply()
      try peer.send(frames[3], frames[1])
      #expect(guest.wait(for: 2) == [frames[3], frames[1]])
    }
  }

  @Test func `a listener that is added before the machine runs gets the notices of its start`() throws {
    let peer = try UnixListener(at: path)
    defer { unlink(path) }
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = 64 << 20
    configuration.netdevs = [try netdev("n0")]
    let machine = try RunningMachine(configuration, interpreter: PassingInterpreter())
    let address = SocketAddress.unix(path: path)
    #expect(eventually { machine.inspection.freeNetdevs.first?.status == .connected(address) })
    do { _ = try peer.accept() }
    #expect(eventually { machine.inspection.freeNetdevs.first?.status == .disconnected })
    let notices = Notes<MachineNotice>()
    machine.control.addListener { notices.add($0) }
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    let id = try Identifier(text: "n0")
    #expect(eventually { notices.all == [.streamConnected(id, address), .streamDisconnected(id)] })
    machine.control.requestQuit(.monitorQuit)
    thread.join()
  }

  @Test func `two machines exchange frames over their sockets`() throws {
    try run([try netdev("n0", [("server", "on")])], [try card("d0", on: "n0")]) { one, _ in
      try run([try netdev("n0")], [try card("d0", on: "n0")]) { two, _ in
        let (left, right) = (NetworkGuest(one), NetworkGuest(two))
        #expect(eventually { left.isLinkUp && right.isLinkUp })
        left.supply()
        right.supply()
        for number in 0..<8 {
          left.send(ethernetFrame(to: right.address, number))
          right.send(ethernetFrame(to: left.address, 100 + number))
          #expect(right.wait(for: 1) == [ethernetFrame(to: right.address, number)])
          #expect(left.wait(for: 1) == [ethernetFrame(to: left.address, 100 + number)])
        }
      }
    }
  }

  @Test func `a peer that does not read stops its device, and neither reset nor unplug waits for it`() throws {
    try run([try netdev("n0", [("server", "on")])], [try card("d0", on: "n0")]) { machine, _ in
      let guest = NetworkGuest(machine)
      let peer = StreamPeer(try FileDescriptor(connectingTo: path))
      #expect(eventually { guest.isLinkUp })
      let frame = ethernetFrame(to: [2, 0, 0, 0, 0, 9], 1, payload: 1500)
      // The device stops taking packets once the socket is full.
      let sent = guest.fill(with: frame)
      #expect(sent > 8 && sent < 5000 && guest.unsent == 8)
      // As soon as the peer reads, the device continues, and no frame is lost.
      for _ in 0..<sent { #expect(try peer.receive() == frame) }
      #expect(eventually { guest.unsent == 0 })
      _ = guest.fill(with: frame)
      let begin = ContinuousClock.now
      guest.start()
      _ = guest.fill(with: frame)
      machine.control.requestReset()
      try machine.control.perform(.setLink("d0", up: false))
      try machine.control.perform(.removeDevice("d0", isSurprise: true))
      #expect(eventually { machine.devices.isEmpty })
      try machine.control.perform(.removeNetdev("n0"))
      #expect(ContinuousClock.now - begin < .seconds(5))
    }
  }

  @Test func `the link follows the connection, and a server takes the next client`() throws {
    try run([try netdev("n0", [("server", "on")])], [try card("d0", on: "n0")]) { machine, notices in
      let guest = NetworkGuest(machine)
      guest.supply(3)
      for round in 0..<3 {
        do {
          let peer = StreamPeer(try FileDescriptor(connectingTo: path))
          #expect(eventually { guest.isLinkUp })
          _ = guest.takeInterrupts()
          // Frames that the peer sends just before its end arrive.
          let frame = ethernetFrame(to: guest.address, round)
          try peer.send(frame)
          #expect(guest.wait(for: 1) == [frame])
        }
        #expect(eventually { !guest.isLinkUp })
        #expect(eventually { guest.takeInterrupts() & 2 == 2 })
        #expect(eventually { status(machine) == .listening })
      }
      let id = try Identifier(text: "n0")
      let expected: [MachineNotice] = [.streamConnected(id, .unix(path: path)), .streamDisconnected(id)]
      #expect(notices.all == expected + expected + expected)
    }
  }

  @Test func `a client connects again after the given time, and without one it does not`() throws {
    let other = path + ".b"
    let netdevs = [
      try netdev("n0", [("reconnect-ms", "20")]), try netdev("n1", path: other),
    ]
    try run(netdevs, [try card("d0", on: "n0"), try card("d1", on: "n1", device: 4)]) { machine, _ in
      let guest = NetworkGuest(machine)
      let idle = NetworkGuest(machine, device: 4)
      #expect(eventually { if case .failed(let error)? = status(machine) { error.code == ENOENT } else { false } })
      let otherListener = try UnixListener(at: other)
      do {
        let listener = try UnixListener(at: path)
        for _ in 0..<3 {
          #expect(Poll.readable([listener.rawValue], milliseconds: 5000) == [true])
          let peer = StreamPeer(try listener.accept())
          #expect(eventually { guest.isLinkUp })
          let frame = ethernetFrame(to: [2, 0, 0, 0, 0, 9], 5)
          guest.send(frame)
          #expect(try peer.receive() == frame)
        }
      }
      #expect(eventually { !guest.isLinkUp })
      #expect(Poll.readable([otherListener.rawValue], milliseconds: 200) == [false])
      #expect(!idle.isLinkUp)
    }
  }

  @Test func `a frame longer than any packet ends the connection, and short ones are dropped`() throws {
    try run([try netdev("n0", [("server", "on")])], [try card("d0", on: "n0")]) { machine, _ in
      let guest = NetworkGuest(machine)
      guest.supply()
      let peer = StreamPeer(try FileDescriptor(connectingTo: path))
      #expect(eventually { guest.isLinkUp })
      let frame = ethernetFrame(to: guest.address, 1)
      try peer.send([], [1], Array(frame.prefix(13)), frame)
      #expect(guest.wait(for: 1) == [frame])
      try peer.sendRaw([0xff, 0xff, 0xff, 0xff])
      #expect(eventually { peer.isClosed })
      #expect(eventually { !guest.isLinkUp })
    }
  }

  @Test func `set_link takes the link of a device or a netdev down, and frames are dropped meanwhile`() throws {
    try run([try netdev("n0", [("server", "on")])], [try card("d0", on: "n0")]) { machine, _ in
      let guest = NetworkGuest(machine)
      let peer = StreamPeer(try FileDescriptor(connectingTo: path))
      #expect(eventually { guest.isLinkUp })
      for name in ["d0", "n0"] {
        try machine.control.perform(.setLink(name, up: false))
        #expect(!guest.isLinkUp && machine.inspection.networkCards.first?.isLinkUp == false)
        guest.send(ethernetFrame(to: [2, 0, 0, 0, 0, 9], 1))
        #expect(eventually { guest.unsent == 0 })
        try machine.control.perform(.setLink(name, up: true))
        #expect(guest.isLinkUp)
        let frame = ethernetFrame(to: [2, 0, 0, 0, 0, 9], 2)
        guest.send(frame)
        #expect(try peer.receive() == frame)
      }
      #expect(throws: RequestError.self) { try machine.control.perform(.setLink("nix", up: true)) }
    }
  }

  @Test func `netdevs come and go: one device for each, and a device keeps its place when its netdev goes`() throws {
    try run([], []) { machine, notices in
      let control = machine.control
      func add(_ id: String, on netdev: String, at device: Int) throws(RequestError) {
        try control.perform(
          .addDevice(
            DeviceDescription(
              VirtioNetOptions.self,
              [("id", id), ("netdev", netdev), ("addr", "0\(device)")].map {
                PropertyAssignment(name: $0.0, value: $0.1)
              })))
      }
      func refused(_ body: () throws(RequestError) -> Void, _ matches: (RequestError) -> Bool) {
        do throws(RequestError) {
          try body()
          Issue.record("it was carried out")
        } catch {
          #expect(matches(error), "\(error)")
        }
      }
      refused { () throws(RequestError) in
        try add("d0", on: "n0", at: 3)
      } _: {
        if case .refused(_, .unknownNetdev) = $0 { true } else { false }
      }
      try control.perform(.addNetdev(try netdev("n0", [("server", "on")])))
      let again = try netdev("n0", [("server", "on")], path: path + ".b")
      refused { () throws(RequestError) in
        try control.perform(.addNetdev(again))
      } _: {
        if case .backend(.duplicateNetdev) = $0 { true } else { false }
      }
      let taken = try netdev("n1", [("server", "on")])
      refused { () throws(RequestError) in
        try control.perform(.addNetdev(taken))
      } _: {
        if case .failed(.netdev(_, _, .system(let error))) = $0 { error.code == EADDRINUSE } else { false }
      }
      try add("d0", on: "n0", at: 3)
      refused { () throws(RequestError) in
        try add("d1", on: "n0", at: 4)
      } _: {
        if case .refused(_, .netdevInUse) = $0 { true } else { false }
      }
      let guest = NetworkGuest(machine)
      let peer = StreamPeer(try FileDescriptor(connectingTo: path))
      #expect(eventually { guest.isLinkUp })

      try control.perform(.removeNetdev("n0"))
      #expect(!guest.isLinkUp && machine.devices.map { $0.id?.text } == ["d0"])
      #expect(eventually { peer.isClosed } && access(path, F_OK) != 0)
      #expect(machine.inspection.networkCards.first?.netdev?.status == .closed)
      guest.send(ethernetFrame(to: [2, 0, 0, 0, 0, 9], 1))
      #expect(eventually { guest.unsent == 0 })
      refused { () throws(RequestError) in
        try control.perform(.removeNetdev("n0"))
      } _: {
        if case .backend(.noSuchNetdev("n0")) = $0 { true } else { false }
      }

      // The id and the path are free at once, and the next device gets the next address.
      try control.perform(.addNetdev(try netdev("n0", [("server", "on")])))
      try add("d1", on: "n0", at: 4)
      let second = NetworkGuest(machine, device: 4)
      #expect(second.address == [0x52, 0x54, 0, 0x12, 0x34, 0x57])
      // The end of the first device does not free the netdev of the second.
      try control.perform(.removeDevice("d0", isSurprise: false))
      #expect(eventually { machine.devices.map { $0.id?.text } == ["d1"] })
      refused { () throws(RequestError) in
        try add("d2", on: "n0", at: 3)
      } _: {
        if case .refused(_, .netdevInUse) = $0 { true } else { false }
      }
      try control.perform(.removeDevice("d1", isSurprise: false))
      #expect(eventually { machine.devices.isEmpty })
      try add("d3", on: "n0", at: 3)
      #expect(NetworkGuest(machine).address == [0x52, 0x54, 0, 0x12, 0x34, 0x56])
      let last = StreamPeer(try FileDescriptor(connectingTo: path))
      let third = NetworkGuest(machine)
      #expect(eventually { third.isLinkUp })
      third.supply()
      try last.send(ethernetFrame(to: third.address, 7))
      #expect(third.wait(for: 1) == [ethernetFrame(to: third.address, 7)])
      #expect(notices.all.contains(.streamDisconnected(try Identifier(text: "n0"))))
    }
  }

  @Test func `a device without a netdev loses what it sends`() throws {
    var options = VirtioNetOptions()
    options.function.address = RequesterID(bus: 0, device: 3, function: 0)
    options.address = MACAddress(rawValue: 0x0200_0000_0001)
    try run([], [options]) { machine, _ in
      let guest = NetworkGuest(machine)
      #expect(guest.isLinkUp && guest.address == [2, 0, 0, 0, 0, 1])
      guest.send(ethernetFrame(to: [2, 0, 0, 0, 0, 9], 1))
      #expect(eventually { guest.unsent == 0 })
      #expect(machine.inspection.networkCards.map(\.name) == ["virtio-net-pci.0"])
    }
  }
}
